"""Pages of a list, as AIP-158 describes them: a bounded number of items and an opaque token for the next ones.

A token names the last key shown, so a page never repeats or skips what stayed in the list while other items came and
went. It holds for the query it was made for and no other. A page also ends before its frame would be too big.
"""

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from kvmanager.errors import Invalid

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 10_000
MAX_BYTES: Final = 4 * 2**20  # of a page's items: half of what a frame may hold
MAX_TOKEN_CHARS: Final = 1024

Key = tuple[str | int, ...]
Item = TypeVar("Item", bound=Message)


def page(items: Iterable[tuple[Key, Item]], query: Key, size: int) -> tuple[list[Item], str]:
    """The first of `items`, at most `size`, and the token of the next page (empty on the last).

    Takes no more from `items` than it shows, but for one; each comes with the key that orders the list.
    """
    shown: list[Item] = []
    last: Key = ()
    room, most = MAX_BYTES, bounded(size)
    for key, item in items:
        room -= item.ByteSize()
        if len(shown) == most or (room < 0 and shown):
            return shown, make_token(query, last)
        shown.append(item)
        last = key
    return shown, ""


def bounded(size: int) -> int:
    """0 is the default; more than the most is the most."""
    return min(size or DEFAULT_SIZE, MAX_SIZE)


def make_token(query: Key, last: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps([query, last]).encode()).decode()


def last_key(token: str, query: Key, shape: tuple[type, ...]) -> Key | None:
    """The key after which the next page begins, its parts of these types; None without a token.

    Raises Invalid for a token that is not one of this query.
    """
    if not token:
        return None
    asked, key = unpacked(token)
    if asked != [*query] or not isinstance(key, list) or not fits(key, shape):
        raise Invalid("page_token is not one of this list; start again without it", field="page_token")
    return tuple(key)


def fits(key: list[Any], shape: tuple[type, ...]) -> bool:
    """A key's parts are strings and counting numbers; a bool is neither."""
    return [*map(type, key)] == [*shape] and all(part >= 0 for part in key if type(part) is int)


def unpacked(token: str) -> tuple[Any, Any]:
    try:
        asked, key = json.loads(base64.b64decode(token[:MAX_TOKEN_CHARS], altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        return None, None
    return asked, key
