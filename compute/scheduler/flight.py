"""Steps that are launched and not done, oldest first, and what may leave this worker only when they are."""

from collections import deque

from compute.plan import StepPlan
from compute.scheduler.boundary import Boundary
from compute.scheduler.compose import Batch


class Flight:
    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._landed_ns = 0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def alone(self) -> bool:
        """A suspect has the device for itself."""
        return any(sequence.alone for batch in self._batches for sequence in batch.sequences)

    def launch(self, batch: Batch, now_ns: int) -> None:
        batch.started_ns = now_ns
        self._batches.append(batch)
        for sequence, row in zip(batch.sequences, batch.rows, strict=True):
            sequence.stepping(row, now_ns)

    def land(self, plan: StepPlan) -> Batch:
        """The oldest one, whose plan this is."""
        batch = self._batches.popleft()
        assert plan.rows is batch.rows, "results of another plan"
        return batch

    def took_ns(self, batch: Batch, now_ns: int) -> int:
        """How long a step that is done now had the device: from its launch, or from the end of the one before."""
        began, self._landed_ns = max(batch.started_ns, self._landed_ns), now_ns
        return now_ns - began

    def hold(self, said: Boundary) -> None:
        """Rows and blocks let go of now leave when the last step launched so far is done (protocol rule 7)."""
        if self._batches and (release := said.freed()) is not None:
            self._batches[-1].freed.append(release)
