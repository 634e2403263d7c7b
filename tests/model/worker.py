"""What a worker does: it sends, launches, computes and listens. Each function takes a world and gives the next one."""

from collections.abc import Iterable

from tests.model.daemon import Policy
from tests.model.rules import Rules
from tests.model.state import (
    ALIVE,
    BAD,
    DEAD,
    LOST,
    NEW,
    OPEN,
    ORPHANED,
    RUNS,
    SEALED,
    SIZE,
    Bounds,
    Job,
    Message,
    Ref,
    State,
    Step,
    Violation,
    Worker,
    blocks_of,
    put,
)


def change(state: State, w: int, **values: object) -> State:
    return state._replace(workers=put(state.workers, w, state.workers[w]._replace(**values)))


def show(state: State, s: int, tokens: int) -> State:
    return state._replace(shown=put(state.shown, s, max(tokens, state.shown[s])))


def send(state: State, w: int, message: Message) -> State:
    """Numbered, kept until it is acknowledged."""
    worker = state.workers[w]
    entry = worker.number + 1, message
    state = change(state, w, number=worker.number + 1, unacked=(*worker.unacked, entry))
    return state._replace(up=put(state.up, w, (*state.up[w], entry)))


def send_or_keep(state: State, w: int, message: Message) -> State:
    worker = state.workers[w]
    if worker.mode == RUNS and worker.attached:
        return send(state, w, message)
    return change(state, w, unsent=(*worker.unsent, message))


def send_kept(state: State, w: int) -> State:
    """What was done while the worker was stopped or without a daemon."""
    messages = state.workers[w].unsent
    state = change(state, w, unsent=())
    for message in messages:
        state = send(state, w, message)
    return state


class Engine:
    """The workers' side."""

    def __init__(self, rules: Rules, bounds: Bounds, policy: Policy) -> None:
        self.rules, self.bounds, self.policy = rules, bounds, policy

    # ------------------------------------------------------------------------------- questions

    def may_open(self, state: State, w: int) -> Iterable[int]:
        """The gateway submits what is new, and again what lost its worker. Who would get Wait does not ask."""
        worker = state.workers[w]
        busy = {job.sequence for job in worker.jobs} | {step.sequence for step in worker.queue}
        busy |= {s for s, _ in worker.ended + worker.given} | {
            m[1] for _, m in worker.unacked if m[0] in ("open", "commit", "release", "fenced")
        }
        signs = (LOST, DEAD) if self.rules.adopt_at_first_sign else (DEAD,)
        for s, seq in enumerate(state.daemon.sequences):
            lost = seq.state == ORPHANED and self.policy.may_adopt(state.daemon, s)
            lost = lost and (seq.owner < 0 or state.daemon.sessions[seq.owner].state in signs)
            mine = seq.state == OPEN and seq.owner == w
            home = s % self.bounds.workers
            start = seq.state == NEW and (w == home or state.daemon.sessions[home].state != ALIVE)
            start = start and self.policy.may_admit(state.daemon, w, s)
            if s not in busy and (start or lost or mine):
                yield s

    def wants_block(self, state: State, w: int) -> bool:
        """A float of one block; the daemon answers those who wait as soon as it can."""
        worker = state.workers[w]
        asked = any(message[0] in ("grant", "open") for _, message in worker.unacked)
        return self.policy.may_grant(state.daemon) and not worker.float and not asked and bool(worker.jobs)

    def may_launch(self, worker: Worker, job: Job) -> bool:
        length = self.bounds.lengths[job.sequence][1]
        surplus = self.bounds.surplus and job.recorded == length and bool(worker.queue)
        need = blocks_of(job.recorded) - len(job.row)
        room = len(worker.queue) < self.bounds.depth and len(worker.unacked) <= self.bounds.depth
        return room and need <= len(worker.float) and (job.recorded < length or surplus)

    # ------------------------------------------------------------------------------- steps

    def launch(self, state: State, w: int, job: Job) -> State:
        worker = state.workers[w]
        need = max(0, blocks_of(job.recorded) - len(job.row))
        taken = worker.float[:need]
        step = Step(
            sequence=job.sequence,
            epoch=job.epoch,
            recorded=job.recorded,
            kv=job.kv,
            start=job.kv if self.rules.only_above_kv_len or not job.again else 0,
            row=job.row + taken,
            taken=taken,
            orders=job.orders,
            surplus=job.recorded == self.bounds.lengths[job.sequence][1],
        )
        new = job._replace(recorded=job.recorded + 1, kv=job.recorded, row=step.row, orders=(), again=False)
        jobs = tuple(new if j == job else j for j in worker.jobs)
        state = change(state, w, jobs=jobs, float=worker.float[need:], queue=(*worker.queue, step))
        if not self.rules.commit_after_done and not step.surplus:
            state = self.committing(state, w, step, "its own")
        return state

    def execute(self, state: State, w: int) -> State:
        """The device is done with the first step: copies, then one slot after the other."""
        step, *rest = state.workers[w].queue
        state = change(state, w, queue=tuple(rest))
        memory = [list(block) for block in state.memory]
        for source, target, count in step.orders:
            self.check_write(state, w, target, range(count))
            memory[target][:count] = memory[source][:count]
        token = "its own"
        for position in range(step.start, step.recorded):
            i, slot = divmod(position, SIZE)
            block = self.target(state, step, i)
            self.check_write(state, w, block, [slot])
            before = [memory[step.row[p // SIZE][0]][p % SIZE] for p in range(position)]
            good = before == [(step.sequence, p) for p in range(position)]
            memory[block][slot] = (step.sequence, position) if good else BAD
            token = token if good else BAD
        state = state._replace(memory=tuple(tuple(block) for block in memory))
        return self.done(state, w, step, token)

    def target(self, state: State, step: Step, i: int) -> int:
        row = state.daemon.sequences[step.sequence].row
        return step.row[i][0] if self.rules.by_value or i >= len(row) else row[i]

    def check_write(self, state: State, w: int, block: int, slots: Iterable[int]) -> None:
        if state.daemon.blocks[block].state == SEALED or self.policy.clean(state.daemon, block):
            raise Violation(f"w{w} writes block {block}, which is sealed or kept for a copy")
        for s, seq in enumerate(state.daemon.sequences):
            pending = {target: count for _, target, count in seq.orders}
            for i, b in enumerate(seq.row):
                committed = range(pending.get(b, 0), seq.kv - i * SIZE)
                if b == block and any(slot in committed for slot in slots):
                    raise Violation(f"w{w} writes a committed slot of s{s} in block {block}")

    def done(self, state: State, w: int, step: Step, token: str) -> State:
        worker = state.workers[w]
        key = step.sequence, step.epoch
        if worker.fenced:
            return state
        if step.surplus or not any((j.sequence, j.epoch) == key for j in worker.jobs):
            return change(state, w, float=worker.float + step.taken)
        if step.recorded + 1 == self.bounds.lengths[step.sequence][1]:
            jobs = tuple(j for j in worker.jobs if j.sequence != step.sequence)
            state = change(state, w, jobs=jobs, ended=(*worker.ended, key))
        if self.rules.commit_after_done:
            state = self.committing(state, w, step, token)
        if not self.rules.show_after_record:
            state = show(state, step.sequence, step.recorded + 1)
        return state

    def committing(self, state: State, w: int, step: Step, token: str) -> State:
        entry = step.recorded, step.kv, step.recorded + 1, step.recorded, step.taken, token
        finish = step.recorded + 1 == self.bounds.lengths[step.sequence][1]
        return send_or_keep(state, w, ("commit", step.sequence, step.epoch, entry, finish))

    # ------------------------------------------------------------------------------- answers

    def hear(self, state: State, w: int) -> State:
        reply, *rest = state.down[w]
        state = state._replace(down=put(state.down, w, tuple(rest)))
        worker = state.workers[w]
        if reply[0] == "fenced":
            return self.hear_fenced(state, w)
        if reply[0] == "holdings":
            return self.hear_holdings(state, w, reply[1])
        asked = dict(worker.unacked).get(reply[1])
        if asked is None:
            return state
        state = change(state, w, unacked=tuple(x for x in worker.unacked if x[0] != reply[1]))
        if reply[0] == "granted":
            return change(state, w, float=(*worker.float, reply[2]))
        if reply[0] == "opened":
            return self.hear_opened(state, w, reply)
        given = asked[1:3] in worker.gave
        if asked[0] == "commit" and (reply[0] == "ack" or given) and self.rules.show_after_record:
            return show(state, asked[1], asked[3][2])
        if asked[0] == "commit" and reply[0] == "refused" and not given:
            return self.hear_refused(state, w, asked)
        return state

    def hear_refused(self, state: State, w: int, commit: Message) -> State:
        """Its blocks are float again, and the sequence is opened again: the answer is its record. Not of a sequence
        that was given up behind the commit: that one was applied, and is another's now."""
        _, s, epoch, entry, _ = commit
        worker = state.workers[w]
        jobs = tuple(job for job in worker.jobs if job[:2] != (s, epoch))
        ended = tuple(key for key in worker.ended if key != (s, epoch))
        return change(state, w, jobs=jobs, ended=ended, float=worker.float + entry[4])

    def waits_for_device(self, state: State, w: int) -> bool:
        """A refusal is heard when no step of the sequence is left on the device."""
        worker, reply = state.workers[w], state.down[w][0]
        asked = dict(worker.unacked).get(reply[1]) if reply[0] == "refused" else None
        named = asked is not None and asked[0] == "commit"
        return named and any(step.sequence == asked[1] for step in worker.queue)

    def hear_opened(self, state: State, w: int, reply: Message) -> State:
        _, _, s, epoch, recorded, kv, row, orders, adopted = reply
        job = Job(s, epoch, recorded, kv, row, orders, adopted)
        if not any(j.sequence == s for j in state.workers[w].jobs):
            state = change(state, w, jobs=(*state.workers[w].jobs, job))
        return show(state, s, recorded)

    def hear_fenced(self, state: State, w: int) -> State:
        """It is nobody's worker any more: it drops everything and ends, once its device is still."""
        none: dict[str, object] = dict.fromkeys(("ended", "given", "jobs", "float", "unacked", "unsent"), ())
        return change(state, w, fenced=True, attached=True, **none)

    def hear_holdings(self, state: State, w: int, granted: tuple[Ref, ...]) -> State:
        """What is granted to me and named neither by a step nor by a message that is not acknowledged: my float."""
        worker = state.workers[w]
        used = [ref for job in worker.jobs for ref in job.row] + [
            ref for x in worker.queue for ref in x.taken
        ]
        for message in [m for _, m in worker.unacked] + list(worker.unsent):
            used += message[3][4] if message[0] == "commit" else message[1:] if message[0] == "give" else ()
        known = set(used) if self.rules.generations else {block for block, _ in used}
        mine = [ref for ref in granted if (ref if self.rules.generations else ref[0]) not in known]
        return change(state, w, float=tuple(mine))

    def attach_again(self, state: State, w: int) -> State:
        """The new daemon is asked what it thinks; then hears again what it may not have heard."""
        again = ((0, ("holdings",)), *state.workers[w].unacked)
        if not self.rules.holdings_in_stream:
            state = self.hear_holdings(state, w, self.policy.holdings(state.daemon, w))
            again = again[1:]
        state = state._replace(up=put(state.up, w, state.up[w] + again))
        return send_kept(change(state, w, attached=True), w)

    def give(self, state: State, w: int, job: Job) -> State:
        """The worker drops a sequence that another is to go on with: a step of it on the device counts for nothing."""
        worker = state.workers[w]
        jobs = tuple(other for other in worker.jobs if other != job)
        given, gave = (*worker.given, job[:2]), (*worker.gave, job[:2])
        return change(state, w, jobs=jobs, given=given, gave=gave)._replace(hands=state.hands - 1)
