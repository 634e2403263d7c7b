"""What the model's world is made of: metadata, workers, wires, memory, and what was shown. All of it immutable."""

from typing import NamedTuple

SIZE = 2  # slots a block
BAD = "bad"  # a slot or a token that was computed from slots with other content than they should have

Ref = tuple[int, int]  # block, generation
Order = tuple[int, int, int]  # source, target, slots
Message = tuple  # its kind first
FREE, GRANTED, TAIL, SEALED, QUARANTINED = "free", "granted", "tail", "sealed", "quarantined"
NEW, OPEN, ORPHANED, DONE = "new", "open", "orphaned", "done"
ALIVE, LOST, DEAD = "alive", "lost", "dead"
RUNS, STOPPED = "runs", "stopped"  # or DEAD


class Violation(Exception):  # noqa: N818 - reads as `raise Violation(...)`
    """A promise is broken; says which."""


class Bounds(NamedTuple):
    """How large the world is, and how much may go wrong in it."""

    workers: int = 2
    blocks: int = 4
    lengths: tuple[tuple[int, int], ...] = ((1, 3),)  # of each sequence: prompt, whole
    depth: int = 1  # steps on the device
    surplus: bool = False  # a step may be launched behind the last one, whose end nobody knew
    stops: int = 0  # a worker is suspended or killed: which of both shows later
    wakes: int = 0
    restarts: int = 0  # of the daemon
    gives: int = 0  # floats given back
    hands: int = 0  # sequences handed over by a worker that lives
    refusals: int = 0  # commits that the daemon has no room for
    eager: bool = (
        True  # a worker hears, then releases, opens, asks and launches, as soon as it can; else in any order
    )


class Block(NamedTuple):
    state: str = FREE
    holder: int = -1  # session
    generation: int = 0


class Sequence(NamedTuple):
    state: str
    recorded: int
    epoch: int = 0
    owner: int = -1  # of an orphan: who was, unless it handed over
    kv: int = 0
    row: tuple[int, ...] = ()
    orders: tuple[Order, ...] = ()


class Session(NamedTuple):
    state: str = ALIVE
    applied: int = 0  # the last message


class Held(NamedTuple):
    """The row of a finished sequence, until its owner's Release."""

    sequence: int
    epoch: int
    owner: int
    row: tuple[int, ...]


class Daemon(NamedTuple):
    """The metadata; and which grants are not in it yet, though they were answered: a restart undoes them."""

    blocks: tuple[Block, ...]
    sequences: tuple[Sequence, ...]
    sessions: tuple[Session, ...]
    held: tuple[Held, ...] = ()
    unstored: tuple[int, ...] = ()


class Job(NamedTuple):
    """A sequence as its worker sees it: lengths count launched steps."""

    sequence: int
    epoch: int
    recorded: int
    kv: int
    row: tuple[Ref, ...]
    orders: tuple[Order, ...] = ()
    again: bool = False  # adopted: nothing was launched yet


class Step(NamedTuple):
    """On the device: writes positions start..recorded - 1 and draws the next token."""

    sequence: int
    epoch: int
    recorded: int
    kv: int
    start: int
    row: tuple[Ref, ...]
    taken: tuple[Ref, ...]  # of `row`: from the float
    orders: tuple[Order, ...]
    surplus: bool


class Worker(NamedTuple):
    mode: str = RUNS
    attached: bool = True
    number: int = 0
    unacked: tuple[tuple[int, Message], ...] = ()
    float: tuple[Ref, ...] = ()
    jobs: tuple[Job, ...] = ()
    queue: tuple[Step, ...] = ()
    unsent: tuple[Message, ...] = ()
    ended: tuple[tuple[int, int], ...] = ()  # (sequence, epoch): to release
    given: tuple[tuple[int, int], ...] = ()  # to say Fenced of
    gave: tuple[tuple[int, int], ...] = ()  # all that it ever gave up
    fenced: bool = False  # and knows it


class State(NamedTuple):
    daemon: Daemon
    workers: tuple[Worker, ...]
    up: tuple[tuple[tuple[int, Message], ...], ...]  # a worker's messages on their way
    down: tuple[tuple[Message, ...], ...]
    memory: tuple[tuple[object, ...], ...]  # slot: (sequence, position), BAD or None
    shown: tuple[int, ...]  # tokens of each sequence, prompt included
    stops: int
    wakes: int
    restarts: int
    gives: int
    hands: int
    refusals: int


def initial(bounds: Bounds) -> State:
    sequences = tuple(Sequence(NEW, prompt) for prompt, _ in bounds.lengths)
    sessions, blocks = (Session(),) * bounds.workers, (Block(),) * bounds.blocks
    none = ((),) * bounds.workers
    return State(
        daemon=Daemon(blocks, sequences, sessions),
        workers=(Worker(),) * bounds.workers,
        up=none,
        down=none,
        memory=((None,) * SIZE,) * bounds.blocks,
        shown=tuple(prompt for prompt, _ in bounds.lengths),
        stops=bounds.stops,
        wakes=bounds.wakes,
        restarts=bounds.restarts,
        gives=bounds.gives,
        hands=bounds.hands,
        refusals=bounds.refusals,
    )


def put(items: tuple, index: int, item: object) -> tuple:
    """The tuple with another item at `index`."""
    return (*items[:index], item, *items[index + 1 :])


def blocks_of(slots: int) -> int:
    return -(-slots // SIZE)
