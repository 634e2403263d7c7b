"""The rules of docs/protocol.md that the model knows, each as a switch."""

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True)
class Rules:
    """All on: the protocol. `without` breaks one."""

    stored_grants: bool = True  # 1: a grant is in the metadata before its reply leaves
    by_value: bool = True  # 2: a step's write targets travel with it, nobody looks them up in shared rows
    show_after_record: bool = True  # 3: tokens are shown when their commit is acknowledged
    commit_after_done: bool = True  # 4: a commit leaves when the device is done with its step
    fresh_tail: bool = True  # 5: an adopter never writes the tail of the one before it
    adopt_at_first_sign: bool = True  # 5: adoption does not wait for a proof of death
    reserve: bool = True  # 5: one block per open sequence and orphan is kept back for its adopter
    orders_stay: bool = True  # 6: copy orders are in the record until a commit covers them
    source_stays: bool = True  # 6: the source of a copy order is referenced
    orders_from_source: bool = True  # 6: the next adopter copies from the order's source, not from its target
    release_by_owner: bool = True  # 7: a row's blocks leave a live owner by its Release
    quarantine_until_proof: bool = True  # 7: a timeout frees nothing
    fenced_after_sync: bool = True  # 2, 7: Fenced is sent when no launched step is left
    only_above_kv_len: bool = True  # 8: an adopter computes no committed slot again
    numbered: bool = True  # §2: a session's message n is applied once
    verdicts: bool = True  # §2: a repeated Commit is answered from the record: it may have been refused
    holdings_in_stream: bool = (
        True  # §2: Holdings come after all answers sent before, not with the attachment
    )
    fenced: bool = True  # §4: a lost session and an older epoch have no effect
    redo: bool = True  # §1: an operation is stored whole or not at all
    generations: bool = True  # §1: a block on the wire is (id, generation)

    def without(self, name: str) -> Self:
        return replace(self, **{name: False})


NAMES = tuple(field.name for field in fields(Rules))
