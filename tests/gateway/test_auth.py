"""Keys, tenants and namespaces; and that no method but health is open without a key."""

import asyncio
import hashlib

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from peers import collect, silent, tell

from gateway.auth import NO_TENANT, KeyFileError, Keys, is_loopback, namespace
from gateway.client import Client, Unauthenticated
from gateway.server import SERVICE


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    lines = ["# tenants", "", f"alice {digest('alice-key')}  # laptop", f"alice {digest('second')}"]
    path.write_text("\n".join([*lines, f"bob\t{digest('bob-key').upper()}"]))
    return path


def bearer(key):
    return (("authorization", f"Bearer {key}"),)


def test_a_key_names_its_tenant(key_file):
    keys = Keys.from_file(key_file)
    assert [keys.tenant(bearer(k)) for k in ("alice-key", "second", "bob-key")] == ["alice", "alice", "bob"]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer(""),
        bearer("wrong"),
        bearer(digest("bob-key")),
        (("authorization", "bob-key"),),
        (("authorization", "Basic bob-key"),),
        (*bearer("bob-key"), *bearer("bob-key")),
        (("x-authorization", "Bearer bob-key"),),
    ],
)
def test_anything_else_is_nobody(key_file, metadata):
    assert Keys.from_file(key_file).tenant(metadata) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "alice",
        "alice xyz",
        f"alice {'a' * 63}",
        f"al/ice {'a' * 64}",
        f"a {'b' * 64}\nc {'b' * 64}",
    ],
)
def test_a_bad_key_file_is_refused_at_the_start(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeyFileError):
        Keys.from_file(path)


def test_a_missing_key_file_is_refused(tmp_path):
    with pytest.raises(KeyFileError):
        Keys.from_file(tmp_path / "none")


def test_namespaces_are_stable_and_apart():
    assert namespace("alice") == namespace("alice")
    assert len({namespace("alice"), namespace("bob"), namespace(""), NO_TENANT}) == 4


@pytest.mark.parametrize(("host", "private"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False),
])  # fmt: skip
def test_loopback_is_told_from_the_rest(host, private):
    assert is_loopback(host) is private


def methods(server):
    """Every method of every service that reflection names, and one that does not exist."""
    pool = descriptor_pool.Default()
    names = [SERVICE, "grpc.reflection.v1alpha.ServerReflection"]
    found = [f"/{name}/{method.name}" for name in names for method in pool.FindServiceByName(name).methods]
    return [*found, "/holdfast.v1.GenerateService/Nothing", "/else.Where/Go"]


async def test_every_method_but_health_refuses_without_a_key(serve, key_file):
    async with serve(api_keys=key_file) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            tried = methods(service)
            assert len(tried) >= 7
            for method in tried:
                for metadata in ((), bearer("wrong")):
                    call = channel.stream_stream(method)(metadata=metadata)
                    await call.done_writing()
                    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, method
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status


async def test_the_tenant_is_the_namespace_of_the_sequence(serve, key_file):
    async with serve(api_keys=key_file) as service:
        worker = service.worker(tell([5]))
        await service.ready()
        for key in ("alice-key", "second", "bob-key"):
            async with Client(service.target, key) as client:
                await collect(client.generate([1], request_id="same"))
        async with Client(service.target, "mallory") as client:
            with pytest.raises(Unauthenticated) as caught:
                await client.tokenize("x")
    assert caught.value.reason == "UNAUTHENTICATED"
    assert [job.submit.tenant for job in worker.jobs] == [namespace(t) for t in ("alice", "alice", "bob")]


async def test_request_ids_of_different_tenants_never_meet(serve, key_file):
    async with serve(api_keys=key_file) as service:
        worker = service.worker(silent)
        await service.ready()
        async with Client(service.target, "alice-key") as alice, Client(service.target, "bob-key") as bob:
            streams = [c.generate([1], request_id="same") for c in (alice, bob)]

            tasks = [asyncio.create_task(collect(s)) for s in streams]
            await worker.until(lambda: len(worker.jobs) == 2)
            for job in worker.jobs:
                await worker.emit(job, [5], 3)
            assert [len(t) for t in await asyncio.gather(*tasks)] == [1, 1]
