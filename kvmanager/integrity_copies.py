"""What must hold of pending copy orders, checked from the records' bytes. See `integrity`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kvmanager.blocks import QUARANTINED, SEALED, TAIL
from kvmanager.layout import MetaLayout, MetaView


def pending(view: MetaView) -> Iterator[tuple[int, Any]]:
    """The records that have an order, by slot."""
    for slot in ((view.sequences["state"] != 0) & (view.sequences["copy_slots"] != 0)).nonzero()[0].tolist():
        yield slot, view.sequences[slot]


def reads(layout: MetaLayout, view: MetaView) -> Any:
    """How many orders read each block: [num_blocks]."""
    counted = np.zeros(layout.num_blocks, np.int64)
    for _, record in pending(view):
        counted[int(record["copy_source"])] += 1
    return counted


def extent_faults(layout: MetaLayout, view: MetaView) -> Iterator[tuple[str, str]]:
    """Orders that name no blocks of this pool, or too many slots: (sequence id, what is wrong)."""
    for _, record in pending(view):
        source, destination = int(record["copy_source"]), int(record["copy_destination"])
        if max(source, destination) >= layout.num_blocks or source == destination:
            yield record["id"].tobytes().hex(), f"a copy order from block {source} to {destination}"
        if int(record["copy_slots"]) >= layout.block_size:
            yield record["id"].tobytes().hex(), f"a copy order of {record['copy_slots']} slots"


def order_faults(view: MetaView) -> Iterator[tuple[str, str]]:
    """Orders whose blocks are not what they have to be: (sequence id, what is wrong)."""
    states = view.blocks["state"]
    for slot, record in pending(view):
        name, destination = record["id"].tobytes().hex(), int(record["copy_destination"])
        if states[int(record["copy_source"])] not in (SEALED, TAIL, QUARANTINED):
            yield name, f"its copy order reads block {record['copy_source']}, which holds nothing"
        if states[destination] not in (TAIL, QUARANTINED) or not in_a_row(view, slot, destination):
            yield name, f"its copy order writes block {destination}, which is no tail of its rows"


def in_a_row(view: MetaView, slot: int, block: int) -> bool:
    rows = (view.rows["sequence"] == slot + 1).nonzero()[0].tolist()
    return any(block in view.entries[row, : int(view.rows[row]["length"])] for row in rows)
