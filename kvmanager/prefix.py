"""The prefix index: which sealed block holds the keys and values of which tokens, after which tokens.

The key of a block is a SHA-256 chain over typed, length-prefixed fields, so that distinct inputs are distinct bytes:

    root  = H("root", model fingerprint, weights dtype, KV dtype, layout version, block size, adapter, tenant)
    key   = H("block", key of the block before it, or root; token ids)

A hash only proposes. A block is taken when its token ids are the wanted ones and the indexed block before it is the
one just taken, so a colliding hash costs a miss, never a wrong hit. Pure; blocks' states are `blocks`' concern.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Final

from kvmanager.layout import PoolSpec

Hash = Callable[[bytes], bytes]
_LENGTH = struct.Struct("<BI")
_NUMBER = struct.Struct("<Q")
_BYTES: Final = 1
_TEXT: Final = 2
_INT: Final = 3


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def encode(*fields: bytes | str | int) -> bytes:
    """Each field as type, length, bytes: no two lists of fields have the same encoding."""
    parts = []
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
        self._digest = digest
        g = spec.geometry
        self._root_fields = (spec.model_fingerprint, spec.dtype, g.dtype, g.layout_version, g.block_size)
        self._roots: dict[tuple[bytes, str], bytes] = {}
        self._prefix = encode("block")

    def root(self, tenant: bytes, adapter: str = "") -> bytes:
        """The parent of a chain's first block: everything that changes the values but the tokens."""
        known = self._roots.get((tenant, adapter))
        if known is None:
            known = self._digest(encode("root", *self._root_fields, adapter, tenant))
            if len(self._roots) >= 4096:  # tenants come from outside
                self._roots.clear()
            self._roots[tenant, adapter] = known
        return known

    def block(self, parent: bytes, token_bytes: bytes) -> bytes:
        """The key of a full block. `token_bytes`: its ids as little-endian u32."""
        head = self._prefix + _LENGTH.pack(_BYTES, len(parent)) + parent
        return self._digest(head + _LENGTH.pack(_BYTES, len(token_bytes)) + token_bytes)
