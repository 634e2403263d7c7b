"""The daemon's side of GPU memory: starts allocator processes, one at a time, and takes what they hand over.

Knows nothing of CUDA. A context and tens of gigabytes take seconds, in which the daemon beats to its keeper.
"""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from kvmanager import fds
from kvmanager.errors import Unavailable
from kvmanager.gpu_memory import LEGACY, VMM, DeviceFacts, decode_facts, decode_refusal
from kvmanager.interpreter import python

MODULE: Final = "kvmanager.gpu_allocator"
ANSWER_BOUND_S: Final = 60.0
EXIT_BOUND_S: Final = 10.0
_VERBS: Final = {VMM: "vmm", LEGACY: "legacy"}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Memory:
    """Descriptors of a new pool's memory, the caller's to close. `hold_fd`: what keeps a legacy pool alive."""

    pool_fd: int
    hold_fd: int | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.pool_fd,) if self.hold_fd is None else (self.pool_fd, self.hold_fd)


class GpuAllocators:
    """Asks one allocator process at a time. Within `beating()` nobody needs to beat."""

    def __init__(self, beating: Callable[[], AbstractContextManager[None]], module: str = MODULE) -> None:
        self._beating, self._module = beating, module
        self._staying: list[subprocess.Popen[bytes]] = []  # of this daemon's legacy pools

    def facts(self, device: str) -> DeviceFacts:
        """What the GPU has and can do. Unavailable if there is no such GPU, or no answer."""
        data, received = self._ask("query", device)
        fds.close_all(received)
        return decode_facts(data)

    def create(self, exporter: str, device: str, allocation: int, nonce: bytes) -> Memory:
        """A zeroed allocation with the nonce at its end. NoMemory or Unavailable if it cannot be had."""
        _, received = self._ask(_VERBS[exporter], device, str(allocation), nonce.hex())
        if len(received) != (2 if exporter == LEGACY else 1):
            fds.close_all(received)
            raise Unavailable(f"the GPU allocator sent {len(received)} descriptors")
        return Memory(*received)

    def let_go(self, hold_fd: int) -> None:
        """Ends a legacy pool's allocator and waits for it. Closes `hold_fd`, which others may hold too."""
        with socket.socket(fileno=hold_fd) as lifeline:
            lifeline.settimeout(EXIT_BOUND_S)
            try:
                lifeline.shutdown(socket.SHUT_WR)
                with self._beating():
                    lifeline.recv(1)
            except OSError as error:
                log.warning("a GPU allocator does not end", error=str(error))

    # ------------------------------------------------------------------------------------- one process

    def _ask(self, *request: str) -> tuple[bytes, list[int]]:
        """The answer of a process of its own, and the descriptors with it. The process has ended, or stays for good."""
        self._staying = [process for process in self._staying if process.poll() is None]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = self._start(request, theirs.fileno())
            try:
                with self._beating():
                    return self._answer(process, ours, stays=request[0] == _VERBS[LEGACY])
            except BaseException:
                process.kill()
                process.wait()
                raise

    def _start(self, request: tuple[str, ...], link: int) -> subprocess.Popen[bytes]:
        device = request[1]
        return subprocess.Popen(
            (*python(), self._module, *request, str(link)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(link,),
            start_new_session=True,  # a legacy allocation outlives the daemon, and its terminal
            env=os.environ | {"CUDA_VISIBLE_DEVICES": device},
        )

    def _answer(
        self, process: subprocess.Popen[bytes], ours: socket.socket, *, stays: bool
    ) -> tuple[bytes, list[int]]:
        ours.settimeout(ANSWER_BOUND_S)
        try:
            data, received = fds.receive(ours)
        except TimeoutError:
            raise Unavailable(f"the GPU allocator did not answer within {ANSWER_BOUND_S:g} s") from None
        except (OSError, fds.PacketError) as error:
            raise Unavailable(f"the GPU allocator's answer cannot be read: {error}") from None
        refusal = decode_refusal(data) if data else Unavailable("the GPU allocator ended without an answer")
        if stays and refusal is None:
            self._staying.append(process)
            return data, received
        with suppress(subprocess.TimeoutExpired):  # its context holds memory until it is gone
            process.wait(EXIT_BOUND_S)
        if refusal is not None:
            fds.close_all(received)
            raise refusal
        return data, received
