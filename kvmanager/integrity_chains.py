"""What must hold of the chains of sealed blocks, checked from the records' bytes. See `integrity`."""

from collections.abc import Iterator
from typing import Any

from kvmanager.blocks import SEALED
from kvmanager.layout import MetaView
from kvmanager.prefix import KeyChain
from kvmanager.records import NONE


def faults(view: MetaView, keys: KeyChain) -> Iterator[tuple[str, int, str]]:
    """Keys recomputed from tokens; parents that are what they are named for; no two indexed blocks with one key. (kind,
    block, what is wrong)."""
    seen: dict[bytes, int] = {}
    for block in (view.blocks["state"] == SEALED).nonzero()[0].tolist():
        record = view.blocks[block]
        key = record["hash"].tobytes()
        if keys.block(record["parent_hash"].tobytes(), view.block_tokens[block].tobytes()) != key:
            yield "hash", block, "its key does not follow from its parent's key and its tokens"
        if not follows(view, record):
            yield "hash", block, "the block that it names as its parent is another"
        if record["indexed"] and seen.setdefault(key, block) != block:
            yield "index", block, f"indexed under the key of block {seen[key]}"


def follows(view: MetaView, record: Any) -> bool:
    """Whether the parent that a sealed block names, if it still holds what it held, is the one before it."""
    link = int(record["parent"])
    before = link & 0xFFFFFFFF
    if before >= len(view.blocks):
        return link != NONE or int(record["depth"]) == 0
    parent = view.blocks[before]
    if int(parent["generation"]) != link >> 32 or int(parent["state"]) != SEALED:
        return True  # evicted since
    same = parent["hash"].tobytes() == record["parent_hash"].tobytes()
    return same and int(parent["depth"]) + 1 == int(record["depth"])
