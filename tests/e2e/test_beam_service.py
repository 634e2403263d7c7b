"""Beam search through the whole service: answers in order at the end, and nothing left when its client goes."""

import asyncio
import subprocess
import sys

import pytest

from gateway.client import Client, DeadlineExpired, InvalidRequest
from tests.e2e.conftest import Running, until
from tools.service import environment

PROMPT = "Once upon a time there was a fox"


async def test_the_best_come_in_order_with_their_scores(service: Running) -> None:
    ids: dict[int, list[int]] = {}
    scores: list[float] = []
    logprobs: dict[int, float] = {}
    async with Client(service.target) as client:
        async for chunk in client.generate(
            PROMPT, beam_width=4, n=3, max_tokens=300, logprobs=1, length_penalty=0.0
        ):
            ids.setdefault(chunk.index, []).extend(chunk.token_ids)
            logprobs[chunk.index] = logprobs.get(chunk.index, 0.0) + sum(
                one.logprob for one in chunk.message.logprobs
            )
            if chunk.finish:
                scores.append(chunk.finish.score)
                assert chunk.index == len(scores) - 1
                assert chunk.finish.usage.completion_tokens == len(ids[chunk.index])
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(tokens) for tokens in ids.values()}) == 3
    assert scores == pytest.approx([logprobs[index] for index in range(3)], abs=1e-3)
    service.assert_clean()


async def test_searches_and_plain_requests_at_once(service: Running) -> None:
    async def whole(client: Client, **options: object) -> list[tuple[int, ...]]:
        return [chunk.token_ids async for chunk in client.generate(PROMPT, max_tokens=16, **options)]

    async with Client(service.target) as client:
        alone = [await whole(client, **one) for one in ({"beam_width": 3}, {"temperature": 0.0})]
        many = await asyncio.gather(
            *(whole(client, **one) for one in ({"beam_width": 3}, {"temperature": 0.0}) * 3)
        )
    assert many == alone * 3
    service.assert_clean()


async def test_a_deadline_ends_a_search_without_an_answer_and_frees_everything(service: Running) -> None:
    shown = []
    async with Client(service.target) as client:
        chunks = client.generate(PROMPT, beam_width=8, max_tokens=900, ignore_eos=True, timeout=1.0)
        with pytest.raises(DeadlineExpired):
            shown += [chunk async for chunk in chunks]
    assert shown == []
    until(lambda: service.worker().get("running", 0) == 0)
    service.assert_clean()
    assert all(one["state"] == "finished" for one in service.kv("get", "sequences")["items"])


async def test_more_answers_than_beams_are_refused(service: Running) -> None:
    async with Client(service.target) as client:
        with pytest.raises(InvalidRequest, match=r"sampling\.n"):
            await anext(client.generate(PROMPT, beam_width=4, n=5))


def test_the_command_line_shows_the_best(service: Running) -> None:
    argv = [sys.executable, "-m", "gateway", "generate", PROMPT, "--target", service.target]
    argv += ["--max-tokens", "12", "--beam-width", "4", "--n", "2", "--length-penalty", "0.5"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment(), timeout=60)
    assert len(out.stdout.splitlines()) >= 2
    assert out.stderr.count("score -") == 2
