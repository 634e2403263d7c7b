"""One sequence as the scheduler holds it: its tokens, its row and where it stands. Owns no decision.

position  0 ........ kv_len ...... launched_len ...... len(tokens) + ahead
          [ KV valid ][ on its way ][     remaining     ]
on its way: of steps launched and not done; `ahead`: tokens that those steps draw and nobody has read yet
remaining == 1: the next step decodes it; more: a prefill chunk (prompt, or everything again after a preemption)
"""

from enum import Enum

from compute.plan import CopyOrder, Draw, Logprob, RowResult, StepRow
from compute.request import Request
from compute.scheduler.outcome import Ended
from kvmanager.messages import FinishReason, Opened, OpenKind, OpenOrAdopt, SequenceRef

OrderKey = tuple[int, int, int]


class Phase(Enum):
    WAITING = "waiting"  # no row
    OPENING = "opening"  # OpenOrAdopt is on its way
    RUNNING = "running"  # has a row
    FOLLOWING = "following"  # another computes its prompt
    ENDED = "ended"


class Sequence:
    """Mutable state of one request. `tokens` is prompt and output; only the scheduler changes it."""

    __slots__ = (
        "adopted",
        "ahead",
        "alone",
        "block_ids",
        "cached_len",
        "canceled",
        "copied",
        "drawing",
        "drawn",
        "epoch",
        "first_step_ns",
        "first_token_ns",
        "followers",
        "forbidden",
        "key",
        "kv_len",
        "last",
        "last_token_ns",
        "launched_len",
        "lead",
        "parent",
        "phase",
        "preemptions",
        "prompt_len",
        "prompt_logprobs",
        "recorded",
        "request",
        "settling",
        "stalled_ns",
        "stalled_since_ns",
        "tokens",
        "uncopied",
    )

    def __init__(self, request: Request, serial: int, eos_ids: frozenset[int]) -> None:
        self.request = request
        self.key: OrderKey = (-request.priority, request.arrival_ns, serial)
        self.tokens: list[int] = [*request.prompt, *request.output]
        self.prompt_len = len(request.prompt)
        self.forbidden = eos_ids | request.stop.stop_token_ids  # before min_tokens
        self.phase = Phase.WAITING
        self.recorded = False  # the daemon has a record of it
        self.settling = False  # its `preempted` entry has not been sent yet
        self.canceled: FinishReason | None = None  # while OPENING: how to end it once it is open
        self.adopted = False  # another worker began it, and its first step here is to come
        self.alone = False  # workers may have died of it: it has steps of its own until one is committed
        self.epoch = 0
        self.kv_len = self.launched_len = self.ahead = 0
        self.block_ids: list[int] = []
        self.uncopied: list[CopyOrder] = []  # its next step begins with these copies
        self.copied = 0  # those of steps on their way: the next commit tells them
        self.cached_len = 0
        self.prompt_logprobs: list[Logprob] = []
        self.preemptions = 0
        self.first_step_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns = 0
        self.stalled_ns = 0
        self.stalled_since_ns: int | None = None
        self.followers: list[Sequence] = []
        self.drawing: list[Sequence] = []  # whose first tokens the step on its way draws
        self.lead: Sequence | None = None  # while FOLLOWING
        self.parent: SequenceRef | None = None  # forked from it
        self.drawn: RowResult | None = None  # the first token, drawn by the lead's row and told to nobody
        self.last = FinishReason.NONE  # if that ends the sequence

    @property
    def remaining(self) -> int:
        return len(self.tokens) + self.ahead - self.launched_len

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def ref(self) -> SequenceRef:
        return SequenceRef(self.request.sequence, self.epoch)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Those of the prompt come with the first token; a recomputation after it does not ask again, and what
        another worker began lacks those that it had."""
        return self.request.prompt_logprobs > 0 and self.num_output == 0 and not self.request.adopt

    @property
    def may_lead(self) -> bool:
        """Whether its prompt is still to be computed, once."""
        fresh = self.num_output == 0 and not self.ahead and not self.preemptions
        return fresh and self.canceled is None and self.phase is not Phase.ENDED

    @property
    def first_draw(self) -> Draw:
        """How a lead's row draws this follower's first token."""
        return Draw(self.request.sampling, self.banned(), self.request.logprobs)

    def draw(self, got: RowResult, now_ns: int) -> None:
        """The lead's row gave its first token."""
        assert got.token_id is not None
        assert self.lead is not None
        self.first_step_ns, self.cached_len = self.lead.first_step_ns, self.prompt_len
        self.drawn, self.parent = got, self.lead.ref
        self.append(got.token_id, now_ns)

    def forget_draw(self) -> None:
        """Nobody was told of it: it will be drawn again."""
        if self.drawn is not None:
            del self.tokens[self.prompt_len :]
            self.drawn, self.parent, self.last = None, None, FinishReason.NONE
            self.first_step_ns, self.first_token_ns, self.cached_len = None, None, 0

    def fork(self, lead: "Sequence", block: int, block_size: int) -> CopyOrder | None:
        """Takes the lead's blocks of the prompt and a tail of its own; what that tail begins with, if anything."""
        shared, slots = divmod(self.prompt_len, block_size)
        self.block_ids = [*lead.block_ids[:shared], block]
        self.kv_len = self.launched_len = self.prompt_len
        self.epoch, self.parent = 1, lead.ref
        return CopyOrder(lead.block_ids[shared], block, slots) if slots else None

    def renewed(self) -> "Sequence":
        """The same request from its beginning, in its old place."""
        return Sequence(self.request, self.key[2], self.forbidden)

    def banned(self) -> frozenset[int]:
        return self.forbidden if self.num_output < self.request.stop.min_tokens else frozenset()

    def open_order(self) -> OpenOrAdopt:
        """The first time with the prompt, and what was shown if another worker may have begun it; after a preemption
        with every recorded token."""
        request = self.request
        return OpenOrAdopt(
            sequence=request.sequence,
            group=request.group,
            index=request.index,
            request=request.record,
            token_ids=tuple(self.tokens),
            max_tokens=request.stop.max_tokens,
            priority=request.priority,
            arrival_ns=request.arrival_ns,
            tenant=request.tenant,
            bypass_prefix=self.wants_prompt_logprobs,
            request_id=request.request_id,
            prompt_len=self.prompt_len,
        )

    def opened(self, opened: Opened) -> None:
        if len(opened.token_ids) > 0:
            self.tokens[:] = opened.token_ids
        assert opened.kv_len < len(self.tokens), "a hit never covers the last token"
        if not self.recorded:
            self.cached_len = opened.cached_len
        self.adopted = opened.kind is OpenKind.ADOPTED or (self.request.adopt and not self.recorded)
        self.alone = opened.alone
        self.recorded = True
        self.epoch = opened.epoch
        self.kv_len = self.launched_len = opened.kv_len
        self.block_ids = [block.id for block in opened.blocks]
        self.uncopied = [CopyOrder(one.source.id, one.destination.id, one.slots) for one in opened.copies]
        self.copied = 0

    def preempted(self, now_ns: int) -> None:
        self.phase = Phase.WAITING
        self.settling = True
        self.kv_len = self.launched_len = self.ahead = 0
        self.block_ids = []
        self.uncopied, self.copied = [], 0
        self.prompt_logprobs = []
        self.preemptions += 1
        if self.first_step_ns is not None:
            self.stalled_since_ns = now_ns

    @property
    def needs_last_token(self) -> bool:
        """Whether its next step can be built only when the token before is known: its draw looks at the history, or
        is one that the device leaves to the host; or that others fork from it."""
        if self.drawing:
            return True
        request, sampling = self.request, self.request.sampling
        changed = (
            sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty
        )
        asked = request.logprobs or self.wants_prompt_logprobs or sampling.logit_bias
        return bool(changed or asked) or self.num_output < request.stop.min_tokens

    def ends_by_length(self, max_model_len: int) -> bool:
        """Whether the tokens ahead are its last, whatever they are."""
        length = self.num_output + self.ahead >= self.request.stop.max_tokens
        return self.ahead > 0 and (length or len(self.tokens) + self.ahead >= max_model_len)

    def stepping(self, row: StepRow, now_ns: int) -> None:
        """A step with this row starts."""
        self.launched_len = row.start + len(row.token_ids)
        self.ahead += row.sample
        self.adopted = False
        if self.first_step_ns is None:
            self.first_step_ns = now_ns
        if self.stalled_since_ns is not None:
            self.stalled_ns += now_ns - self.stalled_since_ns
            self.stalled_since_ns = None

    def take_copies(self) -> list[CopyOrder]:
        """Those that the step being built begins with."""
        copies, self.uncopied = self.uncopied, []
        self.copied += len(copies)
        return copies

    def take_copied(self) -> int:
        """How many copies the entry being built tells."""
        copied, self.copied = self.copied, 0
        return copied

    def append(self, token_id: int, now_ns: int) -> None:
        self.tokens.append(token_id)
        self.last_token_ns = now_ns
        if self.first_token_ns is None:
            self.first_token_ns = now_ns

    def finish_by(self, token_id: int, eos_ids: frozenset[int], max_model_len: int) -> FinishReason:
        """Why the sequence ends with this token, its last; NONE if it goes on. An explicit stop id beats EOS."""
        stop = self.request.stop
        if token_id in stop.stop_token_ids:
            return FinishReason.STOP
        if token_id in eos_ids and not stop.ignore_eos:
            return FinishReason.EOS
        if self.num_output >= stop.max_tokens or len(self.tokens) >= max_model_len:
            return FinishReason.LENGTH
        return FinishReason.NONE

    @property
    def queue_seconds(self) -> float:
        return 0.0 if self.first_step_ns is None else (self.first_step_ns - self.request.arrival_ns) / 1e9

    def ended(self, reason: str, error: str = "") -> Ended:
        first = self.first_token_ns
        return Ended(
            request=self.request,
            reason=reason,
            output_tokens=self.num_output,
            cached_tokens=self.cached_len,
            preemptions=self.preemptions,
            queue_s=None if self.first_step_ns is None else self.queue_seconds,
            ttft_s=None if first is None else (first - self.request.arrival_ns) / 1e9,
            decode_s=None if first is None else (self.last_token_ns - first) / 1e9,
            error=error,
        )
