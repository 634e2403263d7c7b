"""What must be true in every state, and the ends that must be within reach of each."""

from tests.model.state import (
    ALIVE,
    DEAD,
    DONE,
    FREE,
    GRANTED,
    LOST,
    OPEN,
    ORPHANED,
    QUARANTINED,
    SIZE,
    State,
    Violation,
)


def check(state: State) -> None:
    """Raises Violation."""
    check_committed(state)
    check_writers(state)
    check_leaks(state)
    check_reserve(state)
    for s, seq in enumerate(state.daemon.sequences):
        if state.shown[s] > seq.recorded:
            raise Violation(f"{state.shown[s]} tokens of s{s} are shown, {seq.recorded} are recorded")


def finished(state: State) -> bool:
    return all(seq.state == DONE for seq in state.daemon.sequences)


def drained(state: State) -> bool:
    """All is finished; every block is free, or in the float of a worker that lives."""
    daemon = state.daemon
    alive = [w for w, session in enumerate(daemon.sessions) if session.state == ALIVE]
    back = all(x.state == FREE or (x.state == GRANTED and x.holder in alive) for x in daemon.blocks)
    return finished(state) and back and not daemon.held


def copied(state: State, s: int) -> dict[int, tuple[int, int]]:
    """Targets of copies that are still to be done, wherever the order is: (source, slots)."""
    seq = state.daemon.sequences[s]
    orders = list(seq.orders)
    for w, worker in enumerate(state.workers):
        orders += [o for job in worker.jobs if job[:2] == (s, seq.epoch) for o in job.orders]
        orders += [o for step in worker.queue if step[:2] == (s, seq.epoch) for o in step.orders]
        orders += [o for m in state.down[w] if m[0] == "opened" and m[2:4] == (s, seq.epoch) for o in m[7]]
    return {target: (source, count) for source, target, count in orders}


def check_committed(state: State) -> None:
    """Every committed slot holds what it should, or is going to be copied from one that does."""
    for s, seq in enumerate(state.daemon.sequences):
        if seq.state not in (OPEN, ORPHANED):
            continue
        pending = copied(state, s)
        for position in range(seq.kv):
            i, slot = divmod(position, SIZE)
            if i >= len(seq.row):
                raise Violation(f"slot {position} of s{s} is committed and has no block")
            block = seq.row[i]
            source, count = pending.get(block, (block, 0))
            place = source if slot < count else block
            if state.memory[place][slot] != (s, position):
                raise Violation(
                    f"committed slot {position} of s{s} does not hold its own content (block {place})"
                )


def writable(state: State, w: int) -> list[int]:
    """Blocks that the worker or its device may still write; one that is named twice serves two purposes."""
    worker = state.workers[w]
    found = [block for block, _ in worker.float]
    rows: dict[int, set[int]] = {}
    for step in worker.queue:
        named = {step.row[i][0] for i in range(step.start // SIZE, (step.recorded - 1) // SIZE + 1)}
        rows.setdefault(step.sequence, set()).update(named | {target for _, target, _ in step.orders})
    for job in worker.jobs:
        rows.setdefault(job.sequence, set()).update(block for block, _ in job.row[job.kv // SIZE :])
    return found + [block for blocks in rows.values() for block in blocks]


def check_writers(state: State) -> None:
    owner: dict[int, int] = {}
    for w in range(len(state.workers)):
        for block in writable(state, w):
            if block in owner:
                both = f"w{owner[block]} and w{w}" if owner[block] != w else f"w{w} for two purposes"
                raise Violation(f"block {block} can be written by {both}")
            owner[block] = w


def check_reserve(state: State) -> None:
    """When a worker is lost there is a block for the tail of whoever adopts, before any proof."""
    daemon = state.daemon
    if sum(session.state != ALIVE for session in daemon.sessions) > 1 or state.daemon.unstored:
        return
    for s, seq in enumerate(daemon.sequences):
        tail = seq.row[seq.kv // SIZE :]
        lost = seq.state == ORPHANED and tail and daemon.blocks[tail[0]].holder >= 0
        if lost and not any(x.state == FREE for x in daemon.blocks):
            raise Violation(f"s{s} cannot be adopted: nothing is kept back for its tail")


def check_leaks(state: State) -> None:
    daemon = state.daemon
    rows = {b for seq in daemon.sequences for b in (*seq.row, *(o[0] for o in seq.orders))}
    rows |= {b for held in daemon.held for b in held.row}
    for b, block in enumerate(daemon.blocks):
        if block.state == FREE or b in rows:
            continue
        session = daemon.sessions[block.holder].state if block.holder >= 0 else DEAD
        if block.state == GRANTED and session == ALIVE and knows(state, block.holder, (b, block.generation)):
            continue
        if block.state == QUARANTINED and session == LOST:
            continue
        raise Violation(f"block {b} has leaked: {block.state}, and nobody will ever let go of it")


def knows(state: State, w: int, ref: tuple[int, int]) -> bool:
    """Is the grant with the worker, on its way to it, or going to be asked for?"""
    worker = state.workers[w]
    if not worker.attached or worker.fenced:
        return True
    if any(message[0] == "holdings" for _, message in state.up[w]):
        return True
    if any(m[0] == "holdings" and ref in m[1] for m in state.down[w]):
        return True
    waiting = {n for n, _ in worker.unacked}
    if any(m[0] == "granted" and m[1] in waiting and m[2] == ref for m in state.down[w]):
        return True
    named = [
        *worker.float,
        *(r for job in worker.jobs for r in job.row),
        *(r for x in worker.queue for r in x.taken),
    ]
    for message in [*(m for _, m in worker.unacked), *worker.unsent]:
        named += message[3][4] if message[0] == "commit" else message[1:] if message[0] == "give" else ()
    return ref in named
