"""A scheduler and a real KvState in one thread, with the link between them as two queues that a test may hold up.

The runner is a function of the history, so every sequence's tokens are known beforehand whatever was batched,
chunked, cached or preempted.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from compute.ledger import Held, Ledger
from compute.plan import UNKNOWN, CopyOrder, RowResult, StepPlan, StepResult, StepRow
from compute.reconcile import answer, by_sequence, given_up
from compute.request import Request, SamplingParams, StopRules
from compute.scheduler import Limits, Outcome, Rejection, Scheduler, TokenEvent
from kvmanager.layout import Geometry, MetaLayout, PoolSpec
from kvmanager.messages import (
    Acked,
    Commit,
    Fenced,
    FinishReason,
    Grant,
    Granted,
    Numbered,
    Opened,
    OpenOrAdopt,
    Refusal,
    Refused,
    Release,
    Reply,
    Retry,
    Revoke,
    SequenceId,
    SessionId,
    Wait,
)
from kvmanager.state import KvState

VOCAB = 64
EOS = 1
STEP_NS = 10_000_000


def next_token(history: Sequence[int], banned: frozenset[int] = frozenset(), seed: int = 0) -> int:
    """The 'model': every token depends on all before it, and on the seed."""
    digest = hashlib.sha256(bytes(history) + (b"" if seed == 0 else seed.to_bytes(8))).digest()
    return next(byte % VOCAB for byte in digest if byte % VOCAB not in banned)


def expected_output(request: Request, max_model_len: int = 10_000) -> tuple[list[int], FinishReason]:
    """What `request` gives if it is left alone."""
    tokens = list(request.prompt)
    stop = request.stop
    forbidden = stop.stop_token_ids | {EOS}
    while True:
        output = len(tokens) - len(request.prompt)
        banned = forbidden if output < stop.min_tokens else frozenset()
        token = next_token(tokens, banned, request.sampling.seed)
        tokens.append(token)
        made = tokens[len(request.prompt) :]
        if token in stop.stop_token_ids:
            return made, FinishReason.STOP
        if token == EOS and not stop.ignore_eos:
            return made, FinishReason.EOS
        if len(made) >= stop.max_tokens or len(tokens) >= max_model_len:
            return made, FinishReason.LENGTH


def make_request(
    number: int, prompt: Sequence[int] = (2, 3, 4), *, priority: int = 0, **stop: object
) -> Request:
    rules = StopRules(**({"max_tokens": 8} | stop))  # type: ignore[arg-type]
    return Request(
        sequence=SequenceId(number.to_bytes(16, "big")),
        group=bytes(16),
        index=0,
        request_id=f"r{number}",
        prompt=tuple(prompt),
        sampling=SamplingParams(temperature=0.0),
        stop=rules,
        priority=priority,
        arrival_ns=number,
        client=b"gateway",
    )


def make_group(first: int, n: int, prompt: Sequence[int] = (2, 3, 4), **asked: object) -> list[Request]:
    """The n Submits of one request, numbered from `first`, each with its own seed."""
    group = bytes([1]) * 8 + first.to_bytes(8, "big")
    return [
        replace(
            make_request(first + index, prompt, **asked),  # type: ignore[arg-type]
            group=group,
            n=n,
            index=index,
            sampling=SamplingParams(seed=first + index),
        )
        for index in range(n)
    ]


class Slots:
    """The KV of a pool: what the model wrote where. It reads every token's slot back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.tokens: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]

    def copy(self, orders: Sequence[CopyOrder]) -> None:
        for order in orders:
            self.tokens[order.destination][: order.slots] = self.tokens[order.source][: order.slots]

    def write(self, blocks: Sequence[int], start: int, token_ids: Sequence[int]) -> None:
        for position, token in enumerate(token_ids, start):
            self.tokens[blocks[position // self.size]][position % self.size] = token

    def read(self, blocks: Sequence[int], length: int) -> list[int | None]:
        return [self.tokens[blocks[i // self.size]][i % self.size] for i in range(length)]


class Pair:
    """`turn` is one boundary and perhaps one step; `deliver` moves messages both ways."""

    def __init__(
        self,
        num_blocks: int = 16,
        block_size: int = 4,
        max_num_seqs: int = 4,
        max_tokens: int = 16,
        beside: "Pair | None" = None,
        depth: int = 1,
        prefix_caching: bool = True,
    ) -> None:
        """`beside`: another worker of the same pool, made with the same numbers. `depth`: most steps on their way."""
        self.depth = depth
        self.flight: deque[tuple[StepPlan, StepResult]] = deque()
        self.drawn: dict[SequenceId, int] = {}  # by the step launched last: what the device knows
        self.limits = Limits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_tokens,
            max_model_len=256,
            block_size=block_size,
            num_blocks=num_blocks,
            eos_ids=frozenset({EOS}),
            vocab_size=VOCAB,
            prefix_caching=prefix_caching,
        )
        spec = PoolSpec(
            name="pool",
            geometry=Geometry(1, 1, 2, block_size, "float32"),
            num_blocks=num_blocks,
            model="m",
            model_fingerprint=bytes(32),
            device="cpu",
            dtype="float32",
            max_model_len=256,
            max_num_seqs=max_num_seqs,
            vocab_size=VOCAB,
            nonce=bytes(16),
        )
        if beside is None:
            self.state = KvState.create(bytearray(MetaLayout(spec).total_bytes), spec, 0)
            self.workers: dict[SessionId, Pair] = {}
            self.slots = Slots(num_blocks, block_size)
        else:
            self.state, self.workers, self.slots = beside.state, beside.workers, beside.slots
        self.session = SessionId(bytes([len(self.workers)]) * 16)
        self.workers[self.session] = self
        self.state.attach(self.session, worker_id="w", endpoint="e", pid=1, start_time=1, now_ns=0)
        self.scheduler = Scheduler(self.limits)
        self.now = 1_000_000_000
        self.number = 0
        self.up: deque[tuple[int, Numbered]] = deque()
        self.down: deque[tuple[int, Reply]] = deque()
        self.sent: dict[int, Numbered] = {}
        self.ledger = Ledger()
        self.shown: list[TokenEvent] = []
        self.rejected: list[Rejection] = []
        self.plans: list[StepPlan] = []
        self.refusals: list[Refusal] = []
        self.max_float = 0
        self.lost = False
        self.failing: set[SequenceId] = set()  # their rows come back with an error

    # ---------------------------------------------------------------------------------- the worker's side

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.submit(request)

    def turn(self) -> StepPlan | None:
        """One boundary and, if something can run, one step: as the worker's loop does it."""
        self.now += STEP_NS
        plan = self.scheduler.plan(self.now)
        for message in self.scheduler.orders(self.now):
            self._send(message)
        if plan is None:
            self._say(self.scheduler.settle())
        else:
            self.plans.append(plan)
            self.flight.append((plan, self._launch(plan)))
        if self.flight and (plan is None or len(self.flight) == self.depth):
            self.now += STEP_NS
            self._say(self.scheduler.advance(*self.flight.popleft(), self.now))
        return plan

    def _launch(self, plan: StepPlan) -> StepResult:
        self.slots.copy(plan.copies)
        for row in plan.rows:
            self._write(row)
        results = [self._run(row) for row in plan.rows]
        pairs = zip(plan.rows, results, strict=True)
        self.drawn = {row.sequence: got.token_id for row, got in pairs if got.token_id is not None}
        return StepResult(results)

    def _run(self, row: StepRow) -> RowResult:
        assert len(row.blocks) * self.limits.block_size >= row.start + len(row.token_ids)
        if row.sequence in self.failing:
            return RowResult(error="not a number")
        history = self._history(row)
        assert self.slots.read(row.blocks, len(history)) == history, "the slots hold something else"
        if not row.sample:
            return RowResult()
        draws = [(row.banned, row.sampling.seed), *((one.banned, one.sampling.seed) for one in row.forks)]
        own, *forks = [RowResult(token_id=next_token(history, *draw)) for draw in draws]
        return replace(own, forks=forks)

    def _history(self, row: StepRow) -> list[int]:
        history = list(row.history)
        if row.token_ids == (UNKNOWN,):
            assert len(history) == row.start
            history.append(self.drawn.get(row.sequence, 0))  # 0: its row failed
        assert row.token_ids == (UNKNOWN,) or history[row.start :] == list(row.token_ids)
        return history

    def _write(self, row: StepRow) -> None:
        self.slots.write(row.blocks, row.start, self._history(row)[row.start :])

    def _say(self, outcome: Outcome) -> None:
        if outcome.commit is not None:
            self._send(outcome.commit, outcome.events)
        elif not self.ledger.follow(outcome.events):
            self.shown.extend(outcome.events)
        if outcome.release is not None:
            self._send(outcome.release)
        for ref, rejection in ((one.ref, one.rejection) for one in outcome.handed_over):
            if ref.epoch:
                self._send(Fenced(sequence=ref.sequence, epoch=ref.epoch), rejections=(rejection,))
            else:
                self.rejected.append(rejection)
        self.rejected.extend(outcome.rejections)

    def _send(
        self,
        message: Numbered,
        events: Sequence[TokenEvent] = (),
        rejections: Sequence[Rejection] = (),
    ) -> None:
        self.number += 1
        self.ledger.sent(Held(self.number, message, events=events, rejections=rejections))
        self.up.append((self.number, message))

    # ------------------------------------------------------------------------------------------- the link

    def deliver(self, up: int = 1000, down: int = 1000) -> None:
        for _ in range(0 if self.lost else min(up, len(self.up))):
            number, message = self.up.popleft()
            self.sent[number] = message
            for outgoing in self.state.apply(self.session, number, message, self.now):
                self.workers[outgoing.session].down.append((outgoing.number, outgoing.reply))
            self.max_float = max(self.max_float, self.state.counts().granted)
        for _ in range(min(down, len(self.down))):
            self._hear(*self.down.popleft())

    def _hear(self, number: int, reply: Reply) -> None:
        for shown in self.ledger.answered(number, reply.refusals if isinstance(reply, Acked) else ()):
            self.shown.extend(shown.events)
            self.rejected.extend(shown.rejections)
        match reply:
            case Acked():
                message = self.sent[number]
                self.refusals.extend(reply.refusals)
                if not isinstance(message, OpenOrAdopt):  # whose answer was lost
                    assert isinstance(message, Commit | Release | Fenced)
                    self.scheduler.acked(message, reply.refusals, reply.granted)
            case Granted() if number:
                self.scheduler.granted(reply, self.now)
            case Granted():
                self.scheduler.topped_up(reply)
            case Opened():
                self.scheduler.opened(reply)
            case Wait():
                self.scheduler.wait(reply, self.now)
            case Refused():
                self.scheduler.refused(reply, self.now)
            case Revoke():
                self.scheduler.revoke(reply.sequence, reply.epoch, self.now)
            case Retry():
                self.scheduler.retry(reply.sequence)
            case _:
                raise AssertionError(reply)

    def restart_daemon(self) -> None:
        """It dies, and all that was on its way with it; another one goes on with its metadata, and this worker
        attaches again as the link does."""
        self.state = KvState.recover(bytearray(self.state._parts.store.raw), self.now)
        self.up.clear()
        self.down.clear()
        applied, holdings = self.state.number_of(self.session), self.state.holdings(self.session)
        settled, again = [one for one in self.ledger if one.number <= applied], []
        given = given_up(one.message for one in settled)
        for one in settled:
            if isinstance(one.message, OpenOrAdopt):
                again.append(one.message)
            lost = answer(one.message, by_sequence(holdings), given)
            self._hear(one.number, Granted(blocks=()) if isinstance(one.message, Grant) else lost)
        self.scheduler.reconcile(holdings.blocks)
        self.up.extend((one.number, one.message) for one in self.ledger)
        for message in again:
            self._send(message)

    def die(self, *, proven: bool = False) -> None:
        """What it says from now on is for nobody; its steps may still write."""
        self.state.lose(self.session, self.now)
        if proven:
            self.state.dead(self.session)
        self.up.clear()
        self.down.clear()
        self.lost = True

    # --------------------------------------------------------------------------------------------- results

    def run(self, turns: int = 5000) -> None:
        """Until nothing is live and nothing is under way."""
        quiet = 0
        for _ in range(turns):
            sent = self.number
            self.turn()
            self.deliver()
            quiet = quiet + 1 if self.scheduler.idle and self.number == sent else 0
            if quiet == 3:  # what the last delivery brought was answered, too
                return
        raise AssertionError("no end in sight: a deadlock")

    def output(self, request: Request) -> list[int]:
        """The tokens shown, each position once and in order."""
        tokens: list[int] = []
        for event in self.shown:
            if event.sequence == request.sequence:
                assert not event.token_ids or event.first_position == len(request.prompt) + len(tokens)
                tokens.extend(event.token_ids)
        return tokens

    def ends(self, request: Request) -> list[FinishReason | int]:
        """Every terminal message: a finish reason, or the code of a rejection."""
        finished = [e.finish for e in self.shown if e.sequence == request.sequence and e.finish]
        return finished + [r.code for r in self.rejected if r.sequence == request.sequence]

    def used_blocks(self) -> int:
        """Blocks that are neither free nor cached nor float."""
        counts = self.state.counts()
        return self.limits.num_blocks - counts.free - counts.cached - counts.granted
