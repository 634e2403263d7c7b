"""The prefix index: which sealed block holds the keys and values of which tokens, after which tokens.

The key of a block is a SHA-256 chain over typed, length-prefixed fields, so that distinct inputs are distinct bytes:

    root  = H("root", model fingerprint, weights dtype, KV dtype, layout version, block size, adapter, tenant)
    key   = H("block", key of the block before it, or root; token ids)

A hash only proposes. A block is taken when its token ids are the wanted ones and the indexed block before it is the
one just taken, so a colliding hash costs a miss, never a wrong hit. States and references are `blocks`' concern.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from kvmanager.blocks import BlockPool, Place
from kvmanager.layout import PoolSpec
from kvmanager.records import NONE

Hash = Callable[[bytes], bytes]
_LENGTH = struct.Struct("<BI")
_NUMBER = struct.Struct("<Q")
_BYTES: Final = 1
_TEXT: Final = 2
_INT: Final = 3
LOST: Final = NONE - 1  # a link to a block that look-ups cannot find


class Tip(NamedTuple):
    """The end of a sequence's sealed blocks: what its next block is sealed after."""

    depth: int  # blocks sealed so far
    key: bytes  # of the last one, or the root
    link: int  # of the indexed block with that content; NONE at a root, LOST when there is none


class Begin(NamedTuple):
    """A block whose first slots hold what is wanted: to be copied, not shared."""

    source: int
    slots: int


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def encode(*fields: bytes | str | int) -> bytes:
    """Each field as type, length, bytes: no two lists of fields have the same encoding."""
    parts: list[bytes] = []
    for field in fields:
        if isinstance(field, bytes):
            kind, body = _BYTES, field
        elif isinstance(field, str):
            kind, body = _TEXT, field.encode()
        else:
            kind, body = _INT, _NUMBER.pack(field)
        parts += (_LENGTH.pack(kind, len(body)), body)
    return b"".join(parts)


class KeyChain:
    """Makes the keys of one pool's blocks."""

    def __init__(self, spec: PoolSpec, digest: Hash = sha256) -> None:
        self.digest = digest
        g = spec.geometry
        self._root_fields = (spec.model_fingerprint, spec.dtype, g.dtype, g.layout_version, g.block_size)
        self._roots: dict[tuple[bytes, str], bytes] = {}
        self._prefix = encode("block")

    def root(self, tenant: bytes, adapter: str = "") -> bytes:
        """The parent of a chain's first block: everything that changes the values but the tokens."""
        known = self._roots.get((tenant, adapter))
        if known is None:
            known = self.digest(encode("root", *self._root_fields, adapter, tenant))
            if len(self._roots) >= 4096:  # tenants come from outside
                self._roots.clear()
            self._roots[tenant, adapter] = known
        return known

    def block(self, parent: bytes, token_bytes: bytes) -> bytes:
        """The key of a full block. `token_bytes`: its ids as little-endian u32."""
        head = self._prefix + _LENGTH.pack(_BYTES, len(parent)) + parent
        return self.digest(head + _LENGTH.pack(_BYTES, len(token_bytes)) + token_bytes)


class PrefixIndex:
    """Look-ups and seals over the blocks of one pool."""

    def __init__(self, keys: KeyChain, blocks: BlockPool) -> None:
        self.keys, self._blocks = keys, blocks
        self._step = blocks.block_size * 4

    def find(self, tenant: bytes, token_bytes: bytes, most: int) -> list[int]:
        """The sealed blocks, at most `most`, that hold the longest known beginning of these tokens."""
        found: list[int] = []
        parent_key, link = self.keys.root(tenant), NONE
        for start in range(0, most * self._step, self._step):
            tokens = token_bytes[start : start + self._step]
            key = self.keys.block(parent_key, tokens)
            block = self._blocks.by_key.get(key, -1)
            if block < 0 or not self._is(block, link, parent_key, tokens):
                break
            found.append(block)
            parent_key, link = key, self._blocks.link(block)
        return found

    def find_begin(self, tenant: bytes, found: list[int], wanted: bytes) -> Begin | None:
        """Of the blocks after `found` the one that begins with the most of the `wanted` tokens; None where a copy of it
        would save less than half a block. Never a whole block."""
        tip, size = self.tip(tenant, found), self._blocks.block_size
        nearest = self._blocks.children.nearest(tip.link, tip.key, wanted[: self._step - 4])
        if nearest is None or nearest[1] < self._blocks.children.half:
            return None
        assert nearest[1] < size
        return Begin(*nearest)

    def tip(self, tenant: bytes, sealed: list[int], *, private: bool = False) -> Tip:
        """What comes next is sealed after these, a chain from its root; after a private block it stays private."""
        if not sealed:
            return Tip(0, self.keys.root(tenant), LOST if private else NONE)
        last, b = sealed[-1], self._blocks
        return Tip(len(sealed), b.key[last], b.link(last) if b.indexed[last] else LOST)

    def seal(self, block: int, tip: Tip, token_bytes: bytes) -> Tip:
        """Seal a full tail after `tip`; the new tip. Of two equal seals the first is indexed, the other private."""
        key = self.keys.block(tip.key, token_bytes)
        self._blocks.seal(block, Place(tip.depth, tip.link, key, tip.key), token_bytes)
        return Tip(tip.depth + 1, key, self._publish(block, tip, token_bytes))

    def _publish(self, block: int, tip: Tip, token_bytes: bytes) -> int:
        """Index the block if it can be found there; the link of the block that look-ups find, or LOST."""
        blocks = self._blocks
        if tip.link == LOST or not blocks.is_linked(tip.link):
            return LOST
        other = blocks.by_key.get(blocks.key[block], -1)
        if other >= 0:
            if self._is(other, tip.link, tip.key, token_bytes):
                return blocks.link(other)
            if blocks.is_linked(blocks.parent[other]):
                return LOST  # another chain with the same hash
            blocks.unindex(other)  # its parent was evicted and computed again: nobody could find it
        blocks.index(block)
        return blocks.link(block)

    def _is(self, block: int, link: int, parent_key: bytes, tokens: bytes) -> bool:
        """Does the block hold these tokens after the block that `link` names?"""
        b = self._blocks
        return b.tokens[block] == tokens and b.parent[block] == link and b.parent_key[block] == parent_key
