"""The step thread: inbox → scheduler → runner → outbox, step after step, asleep when there is nothing to run.

    CPU (depth 1)    plan n │ step n        │ advance n │ plan n+1 │ step n+1 …
    GPU (depth 2)    plan n+1, launch │ … step n … │ advance n │ plan n+2, launch │ … step n+1 … │ advance n+1

Owns the scheduler and the runner; touches no socket. Its few public fields are read by the I/O thread for heartbeats.
What it cannot handle ends it, and it says so: a worker that computes nothing must not look alive.
"""

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from compute.mailbox import (
    Applied,
    Canceled,
    Crashed,
    Draining,
    Inbox,
    Orders,
    Outbox,
    Stop,
    Submitted,
    ToLink,
    ToStep,
    Unasked,
)
from compute.plan import StepPlan, StepResult
from compute.scheduler import Outcome, Scheduler
from kvmanager.errors import KvError
from kvmanager.messages import (
    Drain,
    Granted,
    Handover,
    Holdings,
    Opened,
    Refused,
    Reply,
    Resume,
    Retry,
    Revoke,
    Wait,
    WorkerState,
)

MAX_UNACKED: Final = 2048  # messages: more than 2 s of the fastest steps, less than the link's queue
WARM_UP_S: Final = 5.0  # at most this long for blocks to warm up with
MIN_BOUND_MS: Final = 1500
MAX_BOUND_MS: Final = 600_000


Landing = Callable[[], StepResult]


class Steps(Protocol):
    """What runs plans, in the order of their launch: compute.runner.Runner, compute.gpu_runner.GpuRunner."""

    @property
    def depth(self) -> int:
        """Steps that may be on their way at once."""
        ...

    def prepare(self) -> None:
        """Whatever takes long and is done once, before the first step."""
        ...

    def launch(self, plan: StepPlan) -> Landing:
        """Starts a step. The call that comes back waits until it is done."""
        ...


class Worker:
    """`load` gives the runner; it is called in the step thread, which takes as long as it takes."""

    def __init__(
        self, scheduler: Scheduler, load: Callable[[], Steps], inbox: Inbox[ToStep], outbox: Outbox[ToLink]
    ) -> None:
        self.state = WorkerState.WARMING
        self.stepping = 0  # tokens of the steps on their way
        self.scheduler = scheduler
        self._load = load
        self._inbox = inbox
        self._outbox = outbox
        self._flight: deque[tuple[StepPlan, Landing]] = deque()
        self._unacked = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="step", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def bound_ms(self) -> int:
        """Silence of the step counter that means "hung"."""
        progress = self.scheduler.progress
        expected_s = max(self.stepping * progress.seconds_per_token, progress.seconds_per_step)
        return max(MIN_BOUND_MS, min(MAX_BOUND_MS, int(10_000 * expected_s)))

    def _main(self) -> None:
        try:
            runner = self._load()
            runner.prepare()
            self._warm_up(runner)
            gc.collect()
            gc.freeze()  # what is loaded stays: no collection walks through it within a step
            self._loop(runner)
        except BaseException as error:  # noqa: BLE001 - told, and the process ends
            self._outbox.put(Crashed(error))

    def _warm_up(self, runner: Steps) -> None:
        """The first step of a process is slow; let it be one that nobody waits for."""
        deadline = time.monotonic() + WARM_UP_S
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._say_orders()
            plans = self.scheduler.rehearsal()
            if plans:
                for plan in plans:
                    self._rehearse(runner, plan)
                break
            self._take(left)
        if self.state is WorkerState.WARMING:
            self.state = WorkerState.READY
        self._outbox.wake()

    def _rehearse(self, runner: Steps, plan: StepPlan) -> None:
        """What it takes is the first guess of how long a step may be silent."""
        began = time.monotonic_ns()
        runner.launch(plan)()
        self.scheduler.progress.measure(plan.num_tokens, 0, time.monotonic_ns() - began)

    def _loop(self, runner: Steps) -> None:
        while not self._stopping:
            self._take(0.0)
            plan = self._next_plan()
            if plan is not None:
                self._launch(runner, plan)
            if self._flight and (plan is None or len(self._flight) == runner.depth):
                self._land()
            elif plan is None:
                self._rest()

    def _next_plan(self) -> StepPlan | None:
        now = time.monotonic_ns()
        if self._unacked >= MAX_UNACKED:
            self.scheduler.held_back(now)
            return None
        plan = self.scheduler.plan(now)
        self._say_orders()
        if plan is None:
            self._say(self.scheduler.settle())
        return plan

    def _launch(self, runner: Steps, plan: StepPlan) -> None:
        self.stepping += plan.num_tokens
        self._flight.append((plan, runner.launch(plan)))

    def _land(self) -> None:
        plan, landing = self._flight.popleft()
        result = landing()
        outcome = self.scheduler.advance(plan, result, time.monotonic_ns())
        self.stepping -= plan.num_tokens
        self._say(outcome)

    def _rest(self) -> None:
        held_back = self._unacked >= MAX_UNACKED  # only an answer helps
        tick = None if held_back else self.scheduler.next_tick_ns()
        self._take(None if tick is None else max(0.001, (tick - time.monotonic_ns()) / 1e9))

    # ------------------------------------------------------------------------------------------- out

    def _say_orders(self) -> None:
        orders = self.scheduler.orders(time.monotonic_ns())
        if orders:
            self._unacked += len(orders)
            self._outbox.put(Orders(orders))

    def _say(self, outcome: Outcome) -> None:
        told = sum(1 for one in outcome.handed_over if one.ref.epoch)
        self._unacked += (outcome.commit is not None) + (outcome.release is not None) + told
        said = outcome.commit or outcome.release or outcome.events or outcome.rejections or outcome.ended
        if said or outcome.handed_over:
            self._outbox.put(outcome)

    # -------------------------------------------------------------------------------------------- in

    def _take(self, timeout_s: float | None) -> None:
        for item in self._inbox.take(timeout_s):
            self._handle(item)

    def _handle(self, item: ToStep) -> None:
        now = time.monotonic_ns()
        scheduler = self.scheduler
        if isinstance(item, Applied | Granted | Opened | Wait | Refused):
            self._unacked -= 1
        match item:
            case Submitted(request):
                scheduler.submit(request)
            case Canceled(sequence, reason):
                scheduler.cancel(sequence, reason)
            case Applied(message, reply):
                scheduler.acked(message, reply.refusals, reply.granted)
            case Granted():
                scheduler.granted(item, now)
            case Opened():
                scheduler.opened(item)
            case Wait():
                scheduler.wait(item, now)
            case Refused():
                scheduler.refused(item, now)
            case Unasked(reply):
                self._handle_unasked(reply, now)
            case Draining():
                self._drain()
            case Stop():
                self._stopping = True
            case _:
                raise KvError(f"the daemon answered with {type(item).__name__}")

    def _handle_unasked(self, reply: Reply, now_ns: int) -> None:
        match reply:
            case Granted():
                self.scheduler.topped_up(reply)
            case Holdings(blocks=blocks):
                self.scheduler.reconcile(blocks)
            case Revoke(sequence=sequence, epoch=epoch):
                self.scheduler.revoke(sequence, epoch, now_ns)
            case Retry(sequence=sequence):
                self.scheduler.retry(sequence)
            case Drain():
                self._drain()
            case Handover():
                self._drain()
                self.scheduler.hand_over()
            case Resume():
                self.state = WorkerState.READY
                self.scheduler.resume()
                self._outbox.wake()
            case _:
                raise KvError(f"the daemon sent {type(reply).__name__} unasked")

    def _drain(self) -> None:
        self.state = WorkerState.DRAINING
        self.scheduler.drain()
        self._outbox.wake()
