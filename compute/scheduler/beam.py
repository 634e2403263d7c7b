"""What a beam has beside what every sequence has, between its choice and the word about it."""

from dataclasses import dataclass

from kvmanager.messages import BlockRef


@dataclass(frozen=True, slots=True)
class Tail:
    """What a beam's first block begins with: copied before its first step."""

    source: int
    slots: int


@dataclass(frozen=True, slots=True)
class Computed:
    """What a beam's row gave, not told yet: where it began, the blocks that it took."""

    base_kv: int
    taken: list[BlockRef]
