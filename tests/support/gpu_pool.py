"""A service whose daemon allocates on the fake GPU, and mappings of its pools."""

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

from kvmanager.attach import geometry_of
from kvmanager.gpu_mapping import GpuPoolMapping
from kvmanager.layout import PoolLayout
from tests.kvmanager.processes import ENVIRON, ROOT, Service
from tests.support.fake_gpu import FakeGpu, host_bytes, used_bytes

PATHS = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
LEGACY_PROCESS = b"tests.support.gpu_allocator\0legacy"


class GpuService(Service):
    """`Service` over a fake GPU, described as in FAKE_GPU."""

    def __init__(self, *flags, gpu=""):
        self.gpu = secrets.randbits(40)
        self.environ = ENVIRON | {"FAKE_GPU": f"id={self.gpu},{gpu}", "PYTHONPATH": PATHS}
        super().__init__(*flags)

    def start(self, *more, verb="serve"):
        own = [f"--run-dir={self.path}", "--log-format=json", "--log-level=debug"]
        own += [f"--keeper={self.sockets.keeper}", *self.flags[6:], *more]
        keeper = [sys.executable, "-m", "kvmanager.keeper", str(self.path), "json", "debug"]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*keeper, sys.executable, "-m", "tests.support.gpu_daemon", *own],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self.environ,
                cwd=ROOT,
            )

    def used_bytes(self):
        return used_bytes(self.gpu)

    def allocators(self):
        """Pids of this service's legacy allocators."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"id={self.gpu},".encode() in (folder / "environ").read_bytes()
                if ours and LEGACY_PROCESS in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    @contextlib.contextmanager
    def worker(self, *action, model="tiny"):
        """Another process with an attachment; `action` is its first, as in tests.support.gpu_worker."""
        command = [sys.executable, "-m", "tests.support.gpu_worker", str(self.path), model, *action]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=self.environ, cwd=ROOT, **pipes) as process:
            try:
                yield process.stdout.readline().strip(), process
            finally:
                process.kill()


def layout_of(spec):
    return PoolLayout(geometry_of(spec))


def map_fake(attachment, layout, **changes):
    given = {
        "device": attachment.device,
        "exporter": attachment.exporter,
        "nonce": attachment.nonce,
        "allocation": attachment.allocation_bytes,
    }
    fd, blocks = attachment.pool_fd, attachment.num_blocks
    return GpuPoolMapping(fd, layout, blocks, **(given | changes), driver=FakeGpu(), as_bytes=host_bytes)
