"""Generate over real sockets: streams, text, stops, and every way in which one ends."""

import pytest
from peers import one_by_one, tell

from gateway.client import Client
from holdfast.v1 import generate_pb2 as pb


async def collect(stream):
    return [chunk async for chunk in stream]


async def test_streams_text_and_ids_as_deltas(service, tokenizer):
    ids = tokenizer.encode("Once upon a time 🙂 there was 日本語", add_special_tokens=False).ids
    async with service.client(tell(*([i] for i in ids))) as client:
        chunks = await collect(client.generate("The fox", max_tokens=100))
    assert [i for c in chunks for i in c.token_ids] == ids
    assert "".join(c.text for c in chunks) == "Once upon a time 🙂 there was 日本語"
    assert [c.next_offset for c in chunks] == list(range(1, len(ids) + 1))
    assert [bool(c.finish) for c in chunks] == [False] * (len(ids) - 1) + [True]
    assert chunks[-1].finish.reason == pb.FINISH_REASON_LENGTH
    assert chunks[-1].finish.usage.completion_tokens == len(ids)
