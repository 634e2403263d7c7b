"""The gateway and its smallest client as processes: signals, exit codes, settings."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial

import grpc
import pytest
import zmq.asyncio
from peers import (
    SERVING,
    ScriptedDaemon,
    ScriptedWorker,
    becomes,
    collect,
    faithful,
    ids_of,
    one_by_one,
    silent,
    tell,
    token_of,
)

from gateway.client import Client, Unreachable
from gateway.config import GatewaySettings
from holdfast import __version__, settings, wire
from tests.support.worker_process import TINY


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


async def finished(process, seconds=60):
    out, err = await asyncio.to_thread(process.communicate, None, seconds)
    return process.returncode, out, err


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def serve_command(model_folder, run_dir, port):
    return command(
        "serve", "--model", model_folder, "--run-dir", run_dir.path, "--port", port, "--shutdown-grace", 2
    )


async def serves(target):
    async with asyncio.timeout(60):
        while True:
            try:
                await becomes(target, SERVING)
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)


@pytest.fixture
async def process(model_folder, run_dir):
    """A gateway process, its port, and a scripted worker that answers `[5, 6]` when told."""
    port = free_port()
    found = serve_command(model_folder, run_dir, port)
    context = zmq.asyncio.Context()
    daemon = ScriptedDaemon(context, run_dir)
    worker = ScriptedWorker(context, run_dir, daemon)
    target = f"127.0.0.1:{port}"
    await serves(target)
    yield found, target, worker
    if found.poll() is None:
        found.kill()
    found.communicate()
    for peer in (worker, daemon):
        await peer.close()
    context.term()


async def test_sigterm_ends_the_process_after_its_streams(process):
    found, target, worker = process
    async with Client(target) as client:
        running = asyncio.create_task(collect(client.generate([1])))
        await worker.until(lambda: worker.jobs)
        found.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert found.poll() is None
        await worker.emit(worker.jobs[0], [5], 3)
        assert ids_of(await running) == [5]
    code, out, err = await finished(found)
    assert (code, out) == (0, "")
    assert '"message": "request ended"' in err
    assert "Traceback" not in err


async def test_streams_longer_than_the_grace_are_ended_and_their_worker_is_told(process):
    found, target, worker = process
    async with Client(target) as client:
        running = asyncio.create_task(collect(client.generate([1], retries=0)))
        await worker.until(lambda: worker.jobs)
        found.send_signal(signal.SIGTERM)
        with pytest.raises(Unreachable) as caught:
            await running
        assert caught.value.reason == "SHUTTING_DOWN"
        await worker.until(lambda: worker.cancels)
    assert (await finished(found))[0] == 0


async def test_the_smallest_client_streams_text_to_stdout(process, tokenizer):
    _, target, worker = process
    ids = tokenizer.encode("the small fox", add_special_tokens=False).ids
    worker.script = tell(*([i] for i in ids))
    code, out, err = await finished(command("generate", "Once", "--target", target, "--max-tokens", "9"))
    assert (code, out) == (0, "the small fox\n")
    assert f"{len(ids)} generated" in err
    code, out, _ = await finished(command("generate", "Once", "--target", target, "--json", "--chat"))
    assert code == 0
    assert len(out.splitlines()) == len(ids)
    worker.script = silent
    code, out, err = await finished(command("generate", "Once", "--target", target, "--timeout", "0.5"))
    assert (code, out) == (5, "")
    code, _, err = await finished(command("generate", "Once", "--target", target, "--temperature", "-1"))
    assert code == 1
    assert "sampling.temperature" in err


async def test_exit_codes_of_the_smallest_client():
    async def code_of(*arguments):
        return (await finished(command(*arguments)))[0]

    nobody = f"127.0.0.1:{free_port()}"
    codes = await asyncio.gather(
        code_of("generate", "x", "--target", nobody, "--timeout", "20"),
        code_of("generate"),
        code_of("generate", "x", "--max-tokens", "0"),
        code_of("version"),
    )
    assert codes == [4, 2, 2, 0]


async def test_a_retry_is_told_on_stderr_before_it_begins(serve):
    """Nobody waits in silence for workers that are not there."""
    async with serve(worker_wait=0.1) as service:
        code, out, err = await finished(command("generate", "x", "--target", service.target))
    assert (code, out) == (4, "")
    waits = [f"no worker serves the model now; trying again ({attempt} of 4)" for attempt in (2, 3, 4)]
    assert err.splitlines() == [*waits, "error: no worker serves the model now (NO_WORKER)"]


async def test_the_smallest_client_gets_the_rest_from_the_gateway_after_a_killed_one(
    process, model_folder, run_dir, tokenizer
):
    found, target, worker = process
    worker.script = partial(faithful, pause=0.02)
    client = command("generate", "Once", "--target", target, "--max-tokens", "150", "--seed", "3")
    await worker.until(lambda: worker.live)
    job = worker.live[0]
    head = await asyncio.to_thread(client.stdout.read, 20)
    found.kill()
    found.communicate()
    another = serve_command(model_folder, run_dir, target.rpartition(":")[2])
    try:
        code, rest, err = await finished(client)
    finally:
        another.kill()
        another.communicate()
    first = len(job.submit.token_ids) // 4
    text = tokenizer.decode([token_of(job.submit, first + place) for place in range(150)])
    assert (code, head + rest) == (0, text + "\n"), err
    assert "trying for 60 s to get the rest" in err
    assert len(worker.jobs) == 2


async def test_ctrl_c_ends_a_generation_at_once_and_its_worker_is_told(process):
    _, target, worker = process
    worker.script = one_by_one
    client = command("generate", "Once", "--target", target)
    await worker.until(lambda: worker.jobs)
    await asyncio.to_thread(client.stdout.read, 1)
    client.send_signal(signal.SIGINT)
    code, _, err = await finished(client)
    assert (code, err) == (130, "")
    await worker.until(lambda: worker.cancels)


@pytest.mark.parametrize("program", ["gateway", "compute", "kvmanager"])
def test_the_three_commands_agree_on_help_and_version(program):
    def said(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("-h") == said("--help")
    assert said("serve", "-h") == said("serve", "--help")
    assert said("version") == f"{program} {__version__} (protocol {wire.VERSION})\n"


@pytest.mark.parametrize("program", ["gateway", "compute", "kvmanager"])
def test_a_bad_run_directory_is_a_usage_error_of_all_three(program, model_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    model = {"gateway": ["--model", model_folder], "compute": ["--model", tmp_path]}.get(program, [])
    for bad, why in ((tmp_path / ("x" * 100), "107 bytes"), ("/proc/none", "cannot create")):
        arguments = [sys.executable, "-m", program, "serve", "--run-dir", bad, *model]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
        assert "Traceback" not in done.stderr


async def test_serving_others_without_keys_is_a_usage_error(model_folder, run_dir):
    process = command("serve", "--model", model_folder, "--run-dir", run_dir.path, "--host", "0.0.0.0")
    code, _, err = await finished(process)
    assert code == 2
    assert "--api-keys" in err


async def test_a_port_in_use_exits_1(service, model_folder, run_dir):
    port = service.gateway.port
    code, _, err = await finished(
        command("serve", "--model", model_folder, "--run-dir", run_dir.path, "--port", port)
    )
    assert code == 1
    assert "in use" in err


def test_settings_come_from_the_environment_too(model_folder):
    environ = {"HOLDFAST_GATEWAY__MODEL": str(model_folder), "HOLDFAST_GATEWAY__PORT": "7"}
    found = settings.load(GatewaySettings, "gateway", {}, environ)
    assert (found.port, found.model_name, found.address) == (7, "tiny", "127.0.0.1:7")
    with pytest.raises(settings.SettingsError, match="not a folder"):
        settings.load(GatewaySettings, "gateway", {"model": "/nowhere"}, {})
