"""Indexed blocks by the block before them: which of them begins with the most of some wanted tokens?

Only a common beginning of at least half a block is of use, so siblings with another first half are kept apart. Siblings
are sorted by their bytes: the one with the longest common beginning stands beside the place of the wanted ones.
"""

from bisect import bisect_left, insort

Sibling = tuple[bytes, int]  # token ids as little-endian u32, block


class Children:
    def __init__(self, block_size: int) -> None:
        self.half = (block_size + 1) // 2  # tokens
        self._siblings: dict[tuple[int, bytes, bytes], list[Sibling]] = {}

    def add(self, parent: int, parent_key: bytes, tokens: bytes, block: int) -> None:
        """`parent`: the link of the block before it, NONE at a root; `parent_key` names the root then."""
        insort(self._siblings.setdefault(self._start(parent, parent_key, tokens), []), (tokens, block))

    def remove(self, parent: int, parent_key: bytes, tokens: bytes, block: int) -> None:
        start = self._start(parent, parent_key, tokens)
        siblings = self._siblings[start]
        siblings.pop(bisect_left(siblings, (tokens, block)))
        if not siblings:
            del self._siblings[start]

    def nearest(self, parent: int, parent_key: bytes, wanted: bytes) -> tuple[int, int] | None:
        """(block, tokens in common) of the one that begins with the most of `wanted`, if it is half a block or more."""
        siblings = self._siblings.get(self._start(parent, parent_key, wanted), [])
        at = bisect_left(siblings, (wanted, -1))
        beside = [(block, common(tokens, wanted)) for tokens, block in siblings[max(0, at - 1) : at + 1]]
        return max(beside, key=lambda one: one[1]) if beside else None

    def _start(self, parent: int, parent_key: bytes, tokens: bytes) -> tuple[int, bytes, bytes]:
        return parent, parent_key, tokens[: self.half * 4]


def common(a: bytes, b: bytes) -> int:
    """How many token ids both begin with."""
    size = min(len(a), len(b))
    differing = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return (size - (differing.bit_length() + 7) // 8) // 4
