"""Fills one step: every sequence in decode gets its token first, then prefill chunks share what is left of the budget.

Who needs a block and gets none is left out of this step. Prefill does not take the last blocks that running decodes
live on while the daemon is silent (`reserve`); without any decode there is nothing to keep them for.
"""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from typing import Final

from compute.plan import UNKNOWN, CopyOrder, StepRow
from compute.scheduler.floats import Float
from compute.scheduler.limits import Limits
from compute.scheduler.sequence import Sequence
from kvmanager.messages import BlockRef, Release

MAX_FORKED_BYTES: Final = (
    64 * 1024
)  # of the requests that forks of one step bring along: a commit is one frame


@dataclass(slots=True)
class Batch:
    """One step being built: parallel lists, and what was missing."""

    sequences: list[Sequence] = field(default_factory=list)
    rows: list[StepRow] = field(default_factory=list)
    taken: list[list[BlockRef]] = field(default_factory=list)
    freed: list[Release] = field(default_factory=list)  # what may go once this step is done
    copies: list[CopyOrder] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)  # of `sequences`: those that had no row before
    started_ns: int = 0
    left_out: list[Sequence] = field(default_factory=list)  # got no block
    short: int = 0  # blocks that were wanted and not there

    def add(self, sequence: Sequence, taken: list[BlockRef], end: int) -> None:
        self.sequences.append(sequence)
        self.taken.append(taken)
        if sequence.uncopied:
            self.copies += sequence.take_copies()
        self.rows.append(make_row(sequence, end))

    @property
    def starving(self) -> bool:
        """Nothing can run for want of blocks, or somebody runs whom a sequence without a block outranks."""
        if not self.left_out:
            return False
        best = max(sequence.request.priority for sequence in self.left_out)
        return not self.rows or any(sequence.request.priority < best for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Offer:
    """The float as prefill sees it: all but `keep` blocks."""

    blocks: Float
    keep: int
    block_size: int

    def take(self, count: int) -> list[BlockRef]:
        return self.blocks.take(min(count, max(0, len(self.blocks) - self.keep)))


def compose(
    running: ListLike[Sequence], blocks: Float, reserve: int, limits: Limits, places: int = 0
) -> Batch:
    """The rows of the next step from sequences in order (priority, arrival); takes blocks from the float. `places`:
    sequences that may get a row by a fork."""
    batch = Batch()
    prefills = []
    for sequence in running:
        if sequence.ends_by_length(limits.max_model_len):
            continue
        if sequence.remaining == 1:
            add_decode(batch, sequence, blocks, limits.block_size)
        else:
            prefills.append(sequence)
    for lead in running if places else ():
        if lead.followers:
            add_forks(batch, lead, blocks, limits.block_size, places)
    offer = Offer(blocks, reserve if batch.rows else 0, limits.block_size)
    budget = limits.max_num_batched_tokens - len(batch.rows)
    for sequence in prefills:
        if budget == 0:
            break
        budget -= add_chunk(batch, sequence, offer, budget)
    return batch


def add_decode(batch: Batch, sequence: Sequence, blocks: Float, block_size: int) -> None:
    end = sequence.launched_len + 1
    taken: list[BlockRef] = []
    if end > len(sequence.block_ids) * block_size:
        taken = blocks.take(1)
        if not taken:
            batch.left_out.append(sequence)
            batch.short += 1
            return
        sequence.block_ids.append(taken[0].id)
    batch.add(sequence, taken, end)


def add_forks(batch: Batch, lead: Sequence, blocks: Float, block_size: int, places: int) -> None:
    """Adds the first decode row of the lead's followers whose first token is drawn, as far as there are places and
    blocks. What the tail of each begins with is copied before the step, from slots that nobody writes any more."""
    ready = [one for one in lead.followers if one.drawn is not None and not one.last]
    for i, member in enumerate(ready):
        told = sum(len(one.request.record) for one in batch.forked) + len(member.request.record)
        if len(batch.forked) >= places or (batch.forked and told > MAX_FORKED_BYTES):
            return
        taken = blocks.take(1)
        if not taken:
            batch.short += len(ready) - i
            return
        copy = member.fork(lead, taken[0].id, block_size)
        batch.copies += [copy] if copy else []
        batch.forked.append(member)
        batch.add(member, taken, member.launched_len + 1)


def add_chunk(batch: Batch, sequence: Sequence, offer: Offer, budget: int) -> int:
    """Adds up to `budget` tokens of a prefill, fewer where blocks are short; how many it added."""
    start = sequence.launched_len
    wanted = min(start + budget, len(sequence.tokens))
    need = max(0, -(-wanted // offer.block_size) - len(sequence.block_ids))
    taken = offer.take(need)
    batch.short += need - len(taken)
    end = min(wanted, (len(sequence.block_ids) + len(taken)) * offer.block_size)
    if end <= start:
        batch.left_out.append(sequence)
        return 0
    sequence.block_ids.extend(block.id for block in taken)
    batch.add(sequence, taken, end)
    return end - start


def make_row(sequence: Sequence, end: int) -> StepRow:
    """The row computes tokens[launched_len:end]. `blocks` and a full `history` are the scheduler's own lists, which
    grow while the step runs: no copy of every token a step."""
    tokens, start, request = sequence.tokens, sequence.launched_len, sequence.request
    last = end == len(tokens) + sequence.ahead
    if last and sequence.followers and sequence.num_output == 0:
        sequence.drawing = list(sequence.followers)
    return StepRow(
        sequence=request.sequence,
        epoch=sequence.epoch,
        token_ids=tokens[start:end] if end <= len(tokens) else (UNKNOWN,),
        start=start,
        blocks=sequence.block_ids,
        sample=last,
        history=tokens if last else tokens[:end],
        prompt_len=sequence.prompt_len,
        sampling=request.sampling,
        banned=sequence.banned() if last else frozenset(),
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs if sequence.wants_prompt_logprobs else 0,
        forks=[member.first_draw for member in sequence.drawing] if sequence.drawing else (),
    )
