"""The step thread and the link within one process: what bounds them, and what happens when a step fails."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import zmq

from compute import worker as worker_module
from compute.codec import Bounds
from compute.front import Front
from compute.link import End, Link
from compute.mailbox import Applied, Crashed, Inbox, Orders, Outbox, Stop, Submitted, ToLink, ToStep, Unasked
from compute.plan import RowResult, StepPlan, StepResult
from compute.scheduler import Limits, Outcome, Scheduler
from compute.worker import Worker
from holdfast.rundir import RunDir
from kvmanager.client import AttachSpec, DaemonLink, attach
from kvmanager.errors import Unavailable
from kvmanager.messages import Acked, Commit, FinishReason, Numbered, Release, WorkerState
from tests.support.scheduling import Pair, expected_output, make_request, next_token
from tests.support.worker_process import DEADLINE_S, Service, service


class Runner:
    """The function of the history as a runner; fails at the steps after `fails_after`."""

    def __init__(self, fails_after: int = 10**9) -> None:
        self.steps = 0
        self.depth = 1
        self.fails_after = fails_after

    def prepare(self) -> None:
        pass

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        return partial(self.run, plan)

    def run(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        if plan.number > self.fails_after:
            raise RuntimeError("the device is gone")
        return StepResult(
            [
                RowResult(token_id=next_token(row.history, row.banned) if row.sample else None)
                for row in plan.rows
            ]
        )


class Rig:
    """A step thread whose daemon is a KvState that this thread pumps."""

    def __init__(self, runner: Runner) -> None:
        self.pair = Pair(num_blocks=200)
        self.inbox: Inbox[ToStep] = Inbox()
        self.outbox: Outbox[ToLink] = Outbox()
        self.worker = Worker(self.pair.scheduler, lambda: runner, self.inbox, self.outbox)
        self.outcomes: list[Outcome] = []
        self.crash: BaseException | None = None
        self.silent = False
        self.number = 0
        self.worker.start()

    def pump(self) -> None:
        """Everything that the step thread said goes to the daemon, unless that is silent; answers go back."""
        if self.silent:
            return
        for item in self.outbox.take():
            if isinstance(item, Crashed):
                self.crash = item.error
            elif isinstance(item, Orders):
                for message in item.messages:
                    self.send(message)
            else:
                self.outcomes.append(item)
                for message in (item.commit, item.release):
                    if message is not None:
                        self.send(message)

    def send(self, message: Numbered) -> None:
        self.number += 1
        for outgoing in self.pair.state.apply(self.pair.session, self.number, message, time.monotonic_ns()):
            reply = outgoing.reply
            if isinstance(reply, Acked):
                assert isinstance(message, Commit | Release)
                self.inbox.put(Applied(message, reply))
            else:
                self.inbox.put(reply if outgoing.number else Unasked(reply))

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline
            self.pump()
            time.sleep(0.001)

    def tokens(self) -> list[int]:
        return [token for outcome in self.outcomes for event in outcome.events for token in event.token_ids]

    def finished(self) -> bool:
        return any(event.finish for outcome in self.outcomes for event in outcome.events)

    def close(self) -> None:
        self.inbox.put(Stop())
        assert self.worker.join(DEADLINE_S)
        self.outbox.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    one = Rig(Runner())
    yield one
    one.close()


def test_the_step_thread_serves_a_request_and_then_sleeps(rig: Rig) -> None:
    """Warm-up runs before READY and is in no commit; idle, the thread takes no processor time."""
    rig.until(lambda: rig.worker.state is WorkerState.READY)
    request = make_request(1, [2] * 9, max_tokens=20, ignore_eos=True)
    rig.inbox.put(Submitted(request))
    rig.until(rig.finished)
    assert rig.tokens() == expected_output(request)[0]
    for _ in range(20):
        rig.pump()
        time.sleep(0.01)
    before, steps = time.process_time(), rig.pair.scheduler.progress.step
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    assert rig.pair.scheduler.progress.step == steps
    assert rig.worker.stepping == 0


def test_the_bound_of_silence_follows_what_steps_take(rig: Rig) -> None:
    """It starts from the rehearsal, grows with the step's tokens, and is never below 1.5 s."""
    rig.until(lambda: rig.worker.state is WorkerState.READY)
    progress = rig.pair.scheduler.progress
    assert progress.seconds_per_step > 0
    assert rig.worker.bound_ms == 1500
    progress.seconds_per_token, progress.seconds_per_step = 0.01, 0.4
    assert rig.worker.bound_ms == 4000
    rig.worker.stepping = 512
    assert rig.worker.bound_ms == 51_200
    rig.worker.stepping = 0


def test_a_silent_daemon_holds_the_steps_back_only_at_the_bound(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps go on unacknowledged up to a bound; the step after that counts as waited and no token is lost."""
    monkeypatch.setattr(worker_module, "MAX_UNACKED", 12)
    request = make_request(1, [2] * 5, max_tokens=100, ignore_eos=True)
    rig.inbox.put(Submitted(request))
    rig.until(lambda: len(rig.tokens()) > 4)
    progress = rig.pair.scheduler.progress
    rig.silent = True
    last = -1
    while progress.step != last:
        last = progress.step
        time.sleep(0.3)
    held = len(rig.tokens())
    rig.silent = False
    rig.until(rig.finished)
    assert 0 < last - held <= 13
    assert progress.steps_waited >= 1
    assert rig.tokens() == expected_output(request)[0]


def test_what_fails_in_the_step_thread_is_told() -> None:
    """The thread ends with its error in the outbox."""
    rig = Rig(Runner(fails_after=3))
    rig.inbox.put(Submitted(make_request(1, max_tokens=20, ignore_eos=True)))
    rig.until(lambda: rig.crash is not None)
    assert str(rig.crash) == "the device is gone"
    assert rig.worker.join(DEADLINE_S)


# ------------------------------------------------------------------------------------------- with a real daemon


def attach_spec(run_dir: RunDir) -> AttachSpec:
    return AttachSpec(
        model="m",
        model_fingerprint=bytes(32),
        dtype="float32",
        vocab_size=256,
        device="cpu",
        num_layers=1,
        num_kv_heads=1,
        head_dim=2,
        block_size=4,
        kv_dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        worker_id="w",
        endpoint=str(run_dir.worker("w")),
    )


def link_until_its_end(one: Service, runner: Runner) -> tuple[End, Link, int]:
    """A worker's I/O thread is this one; a gateway has submitted one request. Its error code comes last."""
    run_dir = RunDir(one.folder).prepare()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front = Front(context, run_dir.worker("w"), Bounds(64, 256))
    with attach(run_dir, attach_spec(run_dir), DEADLINE_S) as attachment:
        limits = Limits(
            max_num_seqs=4,
            max_num_batched_tokens=64,
            max_model_len=256,
            block_size=4,
            num_blocks=attachment.num_blocks,
            eos_ids=frozenset(),
            vocab_size=64,
        )
        inbox: Inbox[ToStep] = Inbox()
        outbox: Outbox[ToLink] = Outbox()
        worker = Worker(Scheduler(limits), lambda: runner, inbox, outbox)
        daemon = DaemonLink(context, run_dir, attachment)
        link = Link(front, daemon, attachment, worker, (inbox, outbox))
        gateway = one.gateway()
        stream = gateway.submit([2, 3, 4], stopping={"max_tokens": 100})
        worker.start()
        end = link.run(grace_s=5)
        gateway.until_ended(stream)
        assert worker.join(DEADLINE_S)
        daemon.close()
    front.close()
    context.term()
    return end, link, stream.error


def test_a_failed_step_ends_the_link_and_every_request() -> None:
    """No zombie that still heartbeats: the requests may go on elsewhere, and the link is over."""
    with service() as one:
        one.kvmanager()
        end, link, code = link_until_its_end(one, Runner(fails_after=5))
    assert end is End.CRASHED
    assert str(link.error) == "the device is gone"
    assert code == Unavailable.code


def test_finish_reasons_of_the_log_are_lower_case() -> None:
    """The canonical line speaks as the metrics do."""
    pair = Pair()
    request = make_request(1, ignore_eos=True)
    pair.submit(request)
    pair.scheduler.cancel(request.sequence, FinishReason.CANCELLED)
    assert [ended.reason for ended in pair.scheduler.settle().ended] == ["cancelled"]
