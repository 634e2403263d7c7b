"""What a client gets from the whole service: real processes, real sockets, the model that the repository ships."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from holdfast.mix import mix
from holdfast.v1 import generate_pb2 as pb
from tests.e2e.conftest import Running, until

OPENING = "Once upon a time there was a small fox named Pip who lived at the edge of a quiet wood with an old badger."


async def collect(client: Client, prompt: Any, **options: Any) -> tuple[str, list[int], Any]:
    """Text, ids and the finish of index 0."""
    text, ids, finish = "", [], None
    async for chunk in client.generate(prompt, **options):
        text, ids = text + chunk.text, ids + list(chunk.token_ids)
        finish = chunk.finish or finish
    return text, ids, finish


async def test_a_story_is_streamed_in_words(service: Running) -> None:
    async with Client(service.target) as client:
        text, ids, finish = await collect(client, OPENING, max_tokens=80, seed=1, temperature=0.7)
        assert text == await client.detokenize(ids)
    assert finish.usage.completion_tokens == len(ids) == 80
    assert len(text.split()) > 40


async def test_the_same_seed_gives_the_same_story_whoever_shares_the_batch(service: Running) -> None:
    async with Client(service.target) as client:
        first = await collect(client, OPENING, max_tokens=48, seed=5, temperature=0.9)
        others = [
            collect(client, f"{name} said:", max_tokens=48, seed=3) for name in ("Ann", "Bo", "Cy", "Di")
        ]
        again, *_ = await asyncio.gather(
            collect(client, OPENING, max_tokens=48, seed=5, temperature=0.9), *others
        )
    assert again[1] == first[1]


async def test_a_shared_opening_is_found_in_the_cache(service: Running) -> None:
    async with Client(service.target) as client:
        await collect(client, OPENING + " He loved honey cake.", max_tokens=4)
        _, _, finish = await collect(client, OPENING + " It rained.", max_tokens=4)
    assert finish.usage.cached_tokens >= 16
    assert service.pool()["prefix_hits"]


async def test_every_index_of_n_has_its_own_words_and_one_finish(service: Running) -> None:
    ids: dict[int, list[int]] = {index: [] for index in range(3)}
    finishes: list[int] = []
    async with Client(service.target) as client:
        async for chunk in client.generate(OPENING, max_tokens=24, n=3, seed=11):
            ids[chunk.index] += chunk.token_ids
            finishes += [chunk.index] if chunk.finish else []
        alone = await collect(client, OPENING, max_tokens=24, seed=11)
    assert sorted(finishes) == [0, 1, 2]
    assert len({tuple(tokens) for tokens in ids.values()}) == 3
    assert ids[0] == alone[1]


async def test_n_indexes_compute_their_prompt_once_and_equal_separate_requests(service: Running) -> None:
    n, prompt = (
        16,
        "The old badger counted his acorns and found that one of them was missing since the morning.",
    )
    before = int(service.worker().get("prompt_tokens", 0))
    texts: dict[int, list[int]] = {}
    finishes = []
    async with Client(service.target) as client:
        async for chunk in client.generate(prompt, max_tokens=20, n=n, seed=11, temperature=0.8):
            texts.setdefault(chunk.index, []).extend(chunk.token_ids)
            finishes += [chunk.finish] if chunk.finish else []
        until(lambda: int(service.worker().get("prompt_tokens", 0)) > before)
        await asyncio.sleep(0.5)  # two heartbeats
        computed = int(service.worker()["prompt_tokens"]) - before
        one = await collect(client, prompt, max_tokens=20, seed=mix(11, 5), temperature=0.8)
    length = finishes[0].usage.prompt_tokens
    assert computed in {length, 2 * length}  # a Submit may come too late for the first
    assert sum(finish.usage.cached_tokens == length for finish in finishes) >= n - 2
    assert texts[5] == one[1]
    service.assert_clean()


async def test_a_stop_string_ends_the_text_before_it(service: Running) -> None:
    async with Client(service.target) as client:
        free = await collect(client, OPENING, max_tokens=60, temperature=0)
        word = free[0].split()[8]
        text, ids, finish = await collect(client, OPENING, max_tokens=60, temperature=0, stop=[word])
    assert finish.reason == pb.FINISH_REASON_STOP
    assert finish.stop == word
    assert word not in text
    assert free[0].startswith(text)
    assert ids == free[1][: len(ids)]


async def test_logprobs_name_the_greedy_token_first(service: Running) -> None:
    seen = []
    async with Client(service.target) as client:
        async for chunk in client.generate(OPENING, max_tokens=8, temperature=0, logprobs=3):
            seen += chunk.message.logprobs
    assert [item.rank for item in seen] == [1] * 8
    assert all(item.top[0].token_id == item.token_id and len(item.top) == 3 for item in seen)


async def test_prompt_logprobs_cover_the_prompt_but_its_first_token(service: Running) -> None:
    async with Client(service.target) as client:
        ids = await client.tokenize(OPENING)
        chunks = [chunk async for chunk in client.generate(ids, max_tokens=2, prompt_logprobs=1)]
    assert [item.token_id for item in chunks[0].message.prompt_logprobs] == ids[1:]


async def test_models_are_listed_with_what_they_can_hold(service: Running) -> None:
    async with Client(service.target) as client:
        (model,) = await client.models()
    assert (model.max_model_len, model.vocab_size) == (4096, 2048)
    assert len(model.fingerprint) == 64


async def test_higher_priorities_and_many_clients_all_finish(service: Running) -> None:
    async with Client(service.target) as client:
        prompts = [f"Story number {number}." for number in range(24)]
        runs = [
            collect(client, p, max_tokens=20, ignore_eos=True, priority=i % 3) for i, p in enumerate(prompts)
        ]
        results = await asyncio.gather(*runs)
    assert [len(ids) for _, ids, _ in results] == [20] * 24
    service.assert_clean()


def test_only_the_gateway_listens_on_tcp_and_only_on_loopback(service: Running) -> None:
    pids = [part.process.pid for part in service.service.parts if part.process]
    found = {address for pid in [*pids, *children(pids)] for address in listening(pid)}
    loopback = f"0100007F:{service.service.port:04X}"  # gRPC listens on it as IPv4 mapped into IPv6
    assert found
    assert all(address.endswith(loopback) for address in found), found


def children(pids: list[int]) -> list[int]:
    below = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
    return [int(pid) for group in below for pid in group]


def listening(pid: int) -> set[str]:
    """Local addresses of the process's listening TCP sockets, as /proc/net/tcp writes them."""
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(fd.readlink()))
        except OSError:
            continue  # closed meanwhile
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.parametrize("part", ["kvmanager", "gateway"])
def test_only_the_worker_loads_torch(service: Running, part: str) -> None:
    process = service.service.part(part).process
    assert process is not None
    for pid in [process.pid, *children([process.pid])]:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
