"""Steps that nobody asked for, to warm a runner up: a chunk of prefill, then one token. Never committed.

They write to blocks of the float, whose slots hold nothing until a commit says so.
"""

from compute.plan import StepPlan, StepRow
from compute.request import SamplingParams
from compute.scheduler.limits import Limits
from kvmanager.messages import SequenceId

SEQUENCE = SequenceId(bytes(16))


def rehearsal(block_ids: list[int], limits: Limits) -> list[StepPlan]:
    """Plans over `block_ids`, at least one; number 0."""
    room = min(len(block_ids) * limits.block_size, limits.max_model_len)
    chunk = max(1, min(limits.max_num_batched_tokens, room - 1))
    plans = [StepPlan(0, [row([0] * chunk, 0, block_ids)])]
    if chunk < room:
        plans.append(StepPlan(0, [row([0] * (chunk + 1), chunk, block_ids)]))
    return plans


def row(history: list[int], start: int, block_ids: list[int]) -> StepRow:
    return StepRow(
        sequence=SEQUENCE,
        epoch=0,
        token_ids=history[start:],
        start=start,
        blocks=block_ids,
        sample=True,
        history=history,
        prompt_len=len(history),
        sampling=SamplingParams(temperature=0.0),
    )
