"""Pages of a list, as AIP-158 describes them: a bounded number of items and an opaque token for the next ones.

A token names the last key shown, so a page never repeats or skips what stayed in the list while other items came and
went. It holds for the query it was made for and no other. A page also ends before its frame would be too big.
"""

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from kvmanager.errors import Invalid

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 10_000
MAX_BYTES: Final = 4 * 2**20  # of a page's items: half of what a frame may hold
MAX_TOKEN_CHARS: Final = 1024
FOREIGN: Final = "page_token is not one of this list; start again without it"

Key = tuple[str | int, ...]
Item = TypeVar("Item", bound=Message)


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """What a query found: ordered keys, cheap to have, and how to make the item of one key."""

    keys: Sequence[Key]
    item: Callable[[Key], Item]


def page(listing: Listing[Item], query: Key, size: int, token: str) -> tuple[list[Item], str]:
    """The items after `token`, at most `size` of them, and the token of the next page (empty on the last).

    Raises Invalid for a token that is not one of this query.
    """
    start = after(listing.keys, last_key(token, query)) if token else 0
    keys = listing.keys[start : start + bounded(size)]
    items: list[Item] = []
    room = MAX_BYTES
    for key in keys:
        item = listing.item(key)
        room -= item.ByteSize()
        if room < 0 and items:
            break
        items.append(item)
    end = start + len(items)
    return items, make_token(query, listing.keys[end - 1]) if end < len(listing.keys) else ""


def after(keys: Sequence[Key], last: Key) -> int:
    """Where the keys greater than `last` begin; its parts must be of the keys' types to be compared."""
    if keys and [*map(type, last)] != [*map(type, keys[0])]:
        raise Invalid(FOREIGN, field="page_token")
    return bisect_right(keys, last)


def bounded(size: int) -> int:
    """0 is the default; more than the most is the most."""
    return min(size or DEFAULT_SIZE, MAX_SIZE)


def make_token(query: Key, key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps([query, key]).encode()).decode()


def last_key(token: str, query: Key) -> Key:
    try:
        asked, key = json.loads(base64.b64decode(token[:MAX_TOKEN_CHARS], altchars=b"-_", validate=True))
        known = tuple(asked) == query and all(type(part) in (str, int) for part in key)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        known = False
    if not known:
        raise Invalid(FOREIGN, field="page_token")
    return tuple(key)
