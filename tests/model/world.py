"""Everything that can happen next."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from tests.model.daemon import Policy
from tests.model.rules import Rules
from tests.model.state import (
    ALIVE,
    DEAD,
    LOST,
    RUNS,
    STOPPED,
    Bounds,
    State,
    put,
)
from tests.model.worker import Engine, change, send, send_kept

FAULT, ZOMBIE, PLAIN = "fault", "zombie", "plain"


class Move(NamedTuple):
    label: str
    kind: str  # FAULT; ZOMBIE: of a stopped worker, or proof of its end; PLAIN
    state: State


class World:
    """One set of rules within one set of bounds."""

    def __init__(self, rules: Rules, bounds: Bounds) -> None:
        self.rules, self.bounds = rules, bounds
        self.policy = Policy(rules, bounds)
        self.engine = Engine(rules, bounds, self.policy)
        self.trying = ""  # the move that raised Violation

    # ------------------------------------------------------------------------------- moves

    def moves(self, state: State) -> Iterator[Move]:
        for w, worker in enumerate(state.workers):
            if worker.mode != DEAD:
                yield from self.of_device(state, w)
            if worker.mode == RUNS and worker.attached:
                moves = self.of_worker(state, w)
                yield from islice(moves, 1) if self.bounds.eager else moves
                yield from self.of_whim(state, w)
            yield from self.of_daemon(state, w)
            yield from self.of_fate(state, w)
        yield from self.restarts(state)

    def of_device(self, state: State, w: int) -> Iterator[Move]:
        worker = state.workers[w]
        if worker.queue:
            step, kind = worker.queue[0], PLAIN if worker.mode == RUNS else ZOMBIE
            what = f"slots {step.start}..{step.recorded - 1} of s{step.sequence}, epoch {step.epoch}"
            copies = "".join(f", after copying block {a} to {b}" for a, b, _ in step.orders)
            into = f" in blocks {[block for block, _ in step.row]}{copies}"
            self.trying = f"w{w}'s device writes {what}{into}"
            yield Move(self.trying, kind, self.engine.execute(state, w))

    def of_worker(self, state: State, w: int) -> Iterator[Move]:
        worker, engine = state.workers[w], self.engine
        if state.down[w] and not engine.waits_for_device(state, w):
            yield Move(f"w{w} hears {said(state.down[w][0])}", PLAIN, engine.hear(state, w))
        if worker.fenced:
            return
        for key in worker.given:
            if not (self.rules.fenced_after_sync and any(step[:2] == key for step in worker.queue)):
                after = change(state, w, given=tuple(k for k in worker.given if k != key))
                yield Move(f"w{w} says Fenced of s{key[0]}", PLAIN, send(after, w, ("fenced", *key)))
        for key in worker.ended:
            if not any(step[:2] == key for step in worker.queue):
                ended = tuple(k for k in worker.ended if k != key)
                after = send(change(state, w, ended=ended), w, ("release", *key))
                yield Move(f"w{w} sends Release(s{key[0]}, epoch {key[1]})", PLAIN, after)
        for s in engine.may_open(state, w):
            yield Move(f"w{w} sends OpenOrAdopt(s{s})", PLAIN, send(state, w, ("open", s)))
        if engine.wants_block(state, w):
            yield Move(f"w{w} sends Grant", PLAIN, send(state, w, ("grant",)))
        for job in worker.jobs:
            if engine.may_launch(worker, job):
                yield Move(f"w{w} launches a step of s{job.sequence}", PLAIN, engine.launch(state, w, job))

    def of_whim(self, state: State, w: int) -> Iterator[Move]:
        worker = state.workers[w]
        if state.gives and worker.float:
            ref, *rest = worker.float
            after = send(change(state, w, float=tuple(rest)), w, ("give", ref))
            yield Move(f"w{w} sends Release(block {ref[0]})", PLAIN, after._replace(gives=state.gives - 1))
        for job in worker.jobs if state.hands else ():
            yield Move(f"w{w} hands s{job.sequence} over", PLAIN, self.engine.give(state, w, job))

    def of_daemon(self, state: State, w: int) -> Iterator[Move]:
        if state.up[w]:
            (n, message), *rest = state.up[w]
            after = state._replace(up=put(state.up, w, tuple(rest)))
            label = self.trying = f"the daemon applies {said(message)} of w{w}"
            daemon, reply = self.policy.handle(state.daemon, w, n, message)
            down = put(state.down, w, (*state.down[w], reply)) if reply else state.down
            yield Move(label, PLAIN, after._replace(daemon=daemon, down=down))
            fresh = n == state.daemon.sessions[w].applied + 1 and state.daemon.sessions[w].state == ALIVE
            if message[0] == "commit" and state.refusals and fresh:
                daemon, reply = self.policy.refuse(state.daemon, w, n)
                down = put(state.down, w, (*state.down[w], reply))
                after = after._replace(daemon=daemon, down=down, refusals=state.refusals - 1)
                yield Move(f"the daemon refuses {said(message)} of w{w}", FAULT, after)
            half = None if self.rules.redo or not state.restarts else self.policy.half(state.daemon, message)
            if half:
                after = self.restarted(after._replace(daemon=half), False, False)
                yield Move(f"the daemon dies while it applies {said(message)} of w{w}", FAULT, after)
        for block in state.daemon.unstored:
            if state.daemon.blocks[block].holder == w:
                after = state._replace(daemon=self.policy.stored(state.daemon, block))
                yield Move(f"the daemon stores its grant of block {block} to w{w}", PLAIN, after)

    def of_fate(self, state: State, w: int) -> Iterator[Move]:
        worker, daemon = state.workers[w], state.daemon
        session = daemon.sessions[w].state
        if worker.mode == RUNS and not worker.attached:
            yield Move(f"w{w} attaches again", PLAIN, self.engine.attach_again(state, w))
        if worker.mode == RUNS and state.stops and not worker.fenced:
            after = change(state, w, mode=STOPPED)._replace(stops=state.stops - 1)
            yield Move(f"w{w} stops", FAULT, after)
        if worker.mode == STOPPED and state.wakes:
            after = change(state, w, mode=RUNS)._replace(wakes=state.wakes - 1)
            after = send_kept(after, w) if worker.attached else after
            yield Move(f"w{w} wakes", ZOMBIE, after)
        if worker.mode == STOPPED and session == ALIVE:
            down = put(state.down, w, (*state.down[w], ("fenced",)))
            after = state._replace(daemon=self.policy.lose(daemon, w), down=down)
            yield Move(f"the daemon takes w{w} for lost", PLAIN, after)
        if worker.mode == STOPPED or (worker.fenced and worker.mode == RUNS and not worker.queue):
            yield Move(f"w{w} is proven dead", ZOMBIE, self.buried(state, w))
        if session == LOST and not self.rules.quarantine_until_proof:
            after = self.policy.end_quarantine(daemon, w)
            if after != daemon:
                yield Move(f"w{w}'s quarantine times out", PLAIN, state._replace(daemon=after))

    def buried(self, state: State, w: int) -> State:
        state = state._replace(
            daemon=self.policy.bury(state.daemon, w), up=put(state.up, w, ()), down=put(state.down, w, ())
        )
        return change(
            state,
            w,
            mode=DEAD,
            queue=(),
            jobs=(),
            float=(),
            unacked=(),
            unsent=(),
            ended=(),
            given=(),
            attached=False,
        )

    def restarts(self, state: State) -> Iterator[Move]:
        """What was on the wires may arrive after all, or not."""
        if state.restarts:
            yield Move("the daemon restarts, wires are empty", FAULT, self.restarted(state, False, False))
            if any(state.up) or any(state.down):
                yield Move("the daemon restarts, wires hold", FAULT, self.restarted(state, True, True))
            if any(state.up) and any(state.down):
                yield Move(
                    "the daemon restarts, its answers are gone", FAULT, self.restarted(state, True, False)
                )

    def restarted(self, state: State, up: bool, down: bool) -> State:
        none = ((),) * self.bounds.workers
        return state._replace(
            daemon=self.policy.restart(state.daemon),
            workers=tuple(x._replace(attached=False) for x in state.workers),
            up=state.up if up else none,
            down=state.down if down else none,
            restarts=state.restarts - 1,
        )


SPELLED = {
    "ack": "Acked({})",
    "refused": "a refusal of {}",
    "open": "OpenOrAdopt(s{})",
    "grant": "Grant",
    "give": "Release(block {0[0]})",
    "release": "Release(s{}, epoch {})",
    "granted": "Granted(block {1[0]})",
}


def said(message: tuple) -> str:
    kind, *rest = message
    if kind in SPELLED:
        return SPELLED[kind].format(*rest)
    if kind == "commit":
        s, _, (base_recorded, base_kv, recorded, kv, taken, _), finish = rest
        blocks = f", takes block {taken[0][0]}" if taken else ""
        change_ = f"recorded {base_recorded}→{recorded}, kv {base_kv}→{kv}"
        return f"Commit(s{s}, {change_}{blocks}{', finish' if finish else ''})"
    if kind == "opened":
        _, s, epoch, recorded, kv, row, orders, _ = rest
        copies = "".join(f", copy block {a} to {b}" for a, b, _ in orders)
        blocks = [block for block, _ in row]
        return f"Opened(s{s}, epoch {epoch}, recorded {recorded}, kv {kv}, blocks {blocks}{copies})"
    if kind == "holdings":
        return f"Holdings{[block for block, _ in rest[0]] if rest else ''}"
    if kind == "fenced":
        return f"Fenced(s{rest[0]}, epoch {rest[1]})" if rest else "that it is fenced"
    raise AssertionError(kind)
