"""Keys of blocks: fixed for ever, distinct for distinct inputs, and never believed without the tokens."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmanager.layout import Geometry
from kvmanager.messages import Opened
from kvmanager.prefix import KeyChain, encode
from kvmanager.state import KvState
from tests.support.kv import TENANT, Worker, buffer_for, pool_spec
from tests.support.storm import Storm

SPEC = pool_spec()
FIELDS = st.lists(
    st.one_of(st.binary(max_size=4), st.text(max_size=3), st.integers(0, 2**64 - 1)), max_size=4
)


def ids(*tokens: int) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def test_known_answers() -> None:
    """A change of these is a new metadata version: caches of a former daemon would be misread."""
    keys = KeyChain(SPEC)
    root = keys.root(TENANT)
    first = keys.block(root, ids(1, 2, 3, 4))
    second = keys.block(first, ids(5, 6, 7, 8))
    assert root.hex() == "df044c4a8625a306aa1ac19b8beb45eddc31aa43cfdca8b3c401952a19228600"
    assert first.hex() == "9a953018022dd92844195eede8409dbbef5ee52a2459aba86fc5e79cd7e8c883"
    assert second.hex() == "3026b6e719976098170344dc0e9438d612595ae74f4e6d4370cd10b62d842a2a"


def test_a_key_is_sha256_over_typed_length_prefixed_fields() -> None:
    def field(kind: int, body: bytes) -> bytes:
        return struct.pack("<BI", kind, len(body)) + body

    fingerprint = field(1, bytes(range(32)))
    numbers = field(3, struct.pack("<Q", 1)) + field(3, struct.pack("<Q", 4))
    texts = field(2, b"float32") + field(2, b"float32")
    root = hashlib.sha256(
        field(2, b"root") + fingerprint + texts + numbers + field(2, b"") + field(1, TENANT)
    ).digest()
    block = hashlib.sha256(field(2, b"block") + field(1, root) + field(1, ids(1, 2, 3, 4))).digest()
    assert KeyChain(SPEC).root(TENANT) == root
    assert KeyChain(SPEC).block(root, ids(1, 2, 3, 4)) == block


def test_whatever_changes_the_values_changes_the_root() -> None:
    geometry = SPEC.geometry
    others = [
        KeyChain(replace(SPEC, model_fingerprint=b"x" * 32)).root(TENANT),
        KeyChain(replace(SPEC, dtype="bfloat16")).root(TENANT),
        KeyChain(replace(SPEC, geometry=replace(geometry, dtype="bfloat16"))).root(TENANT),
        KeyChain(replace(SPEC, geometry=replace(geometry, block_size=8))).root(TENANT),
        KeyChain(SPEC).root(b"x" * 32),
        KeyChain(SPEC).root(TENANT, adapter="a"),
        KeyChain(SPEC).root(TENANT),
    ]
    assert len(set(others)) == len(others)


@given(FIELDS, FIELDS)
def test_distinct_fields_have_distinct_encodings(
    one: list[bytes | str | int], other: list[bytes | str | int]
) -> None:
    typed = [[(type(field), field) for field in fields] for fields in (one, other)]
    assert (encode(*one) == encode(*other)) == (typed[0] == typed[1])


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=4, unique_by=tuple))
def test_distinct_chains_have_distinct_keys(blocks: list[list[int]]) -> None:
    keys = KeyChain(SPEC)
    seen = set()
    for tenant in (TENANT, b"t" * 32):
        key = keys.root(tenant)
        for block in blocks:
            key = keys.block(key, ids(*block))
            seen.add(key)
    assert len(seen) == 2 * len(blocks)


def fill(worker: Worker, number: int, prompt: list[int], **changes: object) -> Opened:
    """Compute a prompt and its first token."""
    worker.grant(4, starving=True)
    reply = worker.start(number, prompt, **changes)
    assert isinstance(reply, Opened)
    worker.step(number, 1)
    return reply


def cached(state: KvState, prompt: list[int], number: int = 99, **changes: object) -> int:
    reply = Worker(state, f"probe{number}").start(number, prompt, **changes)
    assert isinstance(reply, Opened)
    return reply.cached_len


PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("length", "hit"), [(1, 0), (2, 0), (3, 2), (4, 3), (5, 4), (6, 4), (7, 6), (8, 7)])
def test_a_hit_goes_on_within_a_block_from_its_half_and_never_covers_the_last_token(
    length: int, hit: int
) -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    fill(Worker(state, "a"), 1, PROMPT)
    assert cached(state, PROMPT[:length]) == hit


def test_a_longer_prompt_finds_all_of_a_shorter_one() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    fill(Worker(state, "a"), 1, PROMPT)
    assert cached(state, [*PROMPT, 9]) == 8


def test_another_tenant_finds_nothing() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    fill(Worker(state, "a"), 1, PROMPT)
    assert cached(state, [*PROMPT, 9], tenant=b"t" * 32) == 0
    assert cached(state, PROMPT[:3], 98, tenant=b"t" * 32) == 0


def test_the_block_that_begins_with_the_most_is_copied() -> None:
    spec = pool_spec(32)
    state = KvState.create(buffer_for(spec), spec, 0)
    worker = Worker(state, "a")
    for number, prompt in enumerate(([1, 2, 9, 9], [1, 2, 3, 9], [1, 2, 3, 8], [1, 9, 3, 4])):
        fill(worker, number, prompt)
        worker.give_back()
    reply = worker.start(9, [1, 2, 3, 4, 5])
    assert isinstance(reply, Opened)
    [copy] = reply.copies
    assert (copy.slots, copy.destination, reply.cached_len) == (3, reply.blocks[0], 3)
    assert state.describe_block(copy.source.id).token_ids[:3] == [1, 2, 3]
    assert (state.prefix.hits, state.prefix.partial) == (8, 8)
    assert cached(state, [1, 9, 3, 3, 3], 98) == 3
    assert cached(state, [1, 3, 3, 3, 3], 97) == 0


def test_bypassing_the_prefix_copies_nothing_either() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    fill(Worker(state, "a"), 1, PROMPT)
    assert cached(state, PROMPT, bypass_prefix=True) == 0


def test_no_block_is_begun_with_a_copy_where_there_is_no_room_for_it() -> None:
    """The source is kept while it is copied: that must not take the place of prompts in flight."""
    spec = pool_spec(4)
    state = KvState.create(buffer_for(spec), spec, 0)
    worker = Worker(state, "a")
    fill(worker, 1, PROMPT[:4], max_tokens=1)
    worker.finish(1)
    worker.give_back()
    assert state.counts().cached == 1
    reply = worker.start(2, [1, 2, 3, *[9] * 8], 1)
    assert isinstance(reply, Opened)
    assert (reply.copies, reply.cached_len) == ((), 0)


def test_a_bypassing_prompt_finds_nothing_and_is_found() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    fill(Worker(state, "a"), 1, PROMPT, bypass_prefix=True)
    assert cached(state, [*PROMPT, 9], 98, bypass_prefix=True) == 0
    assert cached(state, [*PROMPT, 9]) == 8


def test_without_the_cache_nothing_is_found_and_nothing_is_kept() -> None:
    spec = pool_spec(32)
    state = KvState.create(buffer_for(spec), spec, 0)
    a, b = Worker(state, "a"), Worker(state, "b")
    fill(a, 1, PROMPT)
    assert fill(b, 2, PROMPT, no_cache=True).cached_len == 0
    assert (state.prefix.queries, state.prefix.hits) == (8, 0), "nothing was looked up for it"
    other = [9, *PROMPT[1:]]
    fill(b, 3, other, no_cache=True)
    assert cached(state, [*other, 9]) == 0
    free = state.counts().free
    b.finish(3)
    assert state.counts().free == free + 2, "its blocks are free at its end, not cached"
    assert state.check_integrity() == []


@pytest.mark.parametrize("prompt", [PROMPT[:3], PROMPT], ids=["shorter than a block", "two blocks"])
def test_what_forks_from_a_sequence_without_the_cache_is_not_found_either(prompt: list[int]) -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    worker = Worker(state, "a")
    fill(worker, 1, prompt, no_cache=True)
    worker.grant(4, starving=True)
    assert not worker.commit(worker.fork(2, 1, len(prompt), [20, 21])).refusals
    for token in (22, 23, 24, 25):
        worker.step(2, token)
    assert not any(block.indexed for block in state.blocks("sealed"))
    assert cached(state, [*prompt, 20, 21, 22, 23, 24, 25]) == 0


def test_a_sequence_that_comes_back_says_again_whether_it_uses_the_cache() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    worker = Worker(state, "a")
    fill(worker, 1, PROMPT)
    worker.preempt(1)
    worker.grant(2, starving=True)
    again = worker.start(1, [*PROMPT, 1], no_cache=True)
    assert isinstance(again, Opened)
    assert again.cached_len == 0


def test_of_two_equal_seals_the_first_is_indexed_and_the_other_private() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    a, b = Worker(state, "a"), Worker(state, "b")
    for worker in (a, b):
        worker.grant(2, starving=True)
        worker.start(1 if worker is a else 2, PROMPT, bypass_prefix=worker is b)
    a.step(1, 1)
    b.step(2, 1)
    assert [(block.id, block.indexed) for block in state.blocks("sealed")] == [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
    ]
    b.finish(2)
    assert state.counts().free == SPEC.num_blocks - 2, "a private block is free once nobody uses it"


def test_what_follows_a_private_block_is_found_behind_the_indexed_one() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0)
    a, b = Worker(state, "a"), Worker(state, "b")
    for worker, number in ((a, 1), (b, 2)):
        worker.grant(3, starving=True)
        worker.start(number, PROMPT, bypass_prefix=worker is b)
    a.step(1, 1)
    b.step(2, 1)
    for token in (2, 3, 4, 5):
        b.step(2, token)
    assert cached(state, [*PROMPT, 1, 2, 3, 4, 9]) == 12


def constant(_data: bytes) -> bytes:
    return b"h" * 32


def four_values(data: bytes) -> bytes:
    return bytes([hashlib.sha256(data).digest()[0] % 4]) * 32


@pytest.mark.parametrize("digest", [constant, four_values])
def test_hashes_that_collide_cost_hits_but_never_give_a_wrong_one(digest: Callable[[bytes], bytes]) -> None:
    """The storm compares all tokens up to the end of each block that is found."""
    storm = Storm(seed=3, digest=digest)
    storm.run(6000)
    assert storm.state.check_integrity() == []
    assert storm.happened["hits"] > 0
    storm.stop()


def test_a_constant_hash_still_finds_the_one_block_that_it_indexes() -> None:
    state = KvState.create(buffer_for(SPEC), SPEC, 0, digest=constant)
    fill(Worker(state, "a"), 1, PROMPT)
    assert cached(state, [*PROMPT, 9]) == 4
    assert cached(state, [9, 9, 9, 9, 9], 98) == 0


def test_a_geometry_of_another_block_size_is_another_chain() -> None:
    wide = pool_spec(geometry=Geometry(2, 1, 8, 8, "float32"))
    assert KeyChain(wide).root(TENANT) != KeyChain(SPEC).root(TENANT)
