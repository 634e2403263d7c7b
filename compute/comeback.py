"""Attaching again after the daemon died and its keeper started another, in a thread of its own: the I/O thread goes on.

The new daemon knows this worker's session from the metadata; the memory stays mapped as it is.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import zmq

from holdfast.rundir import RunDir
from kvmanager.client import Attachment, AttachSpec, DaemonLink, attach
from kvmanager.errors import KvError, Mismatch, Unavailable
from kvmanager.messages import SessionId

THREAD: Final = "attach again"


class Comeback:
    """One worker's. `begin` may be called again after `take` gave something."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        sockets: RunDir,
        spec: AttachSpec,
        nonce: bytes,
        timeout_s: float,
    ) -> None:
        self._context, self._sockets, self._spec, self._nonce = context, sockets, spec, nonce
        self._timeout_s = timeout_s
        self._found: Attachment | KvError | None = None

    def begin(self, session: bytes, wake: Callable[[], None]) -> None:
        """Calls `wake` when `take` has something."""
        self._found = None
        threading.Thread(target=self._run, args=(SessionId(session), wake), name=THREAD, daemon=True).start()

    def _run(self, session: SessionId, wake: Callable[[], None]) -> None:
        try:
            self._found = self._attach(session)
        except KvError as error:
            self._found = error
        except Exception as error:  # noqa: BLE001 - told, and the worker ends: nobody waits for a thread that is gone
            self._found = Unavailable(f"attaching again failed: {error}")
        wake()

    def _attach(self, session: SessionId) -> Attachment:
        attachment = attach(self._sockets, replace(self._spec, resume_session=session), self._timeout_s)
        if attachment.nonce != self._nonce or attachment.session != session:
            attachment.close()
            raise Mismatch("the KV manager came back with another pool or session")
        return attachment

    def take(self) -> Attachment | KvError | None:
        """What came of it: the new attachment, or why there is none. None: not yet."""
        found, self._found = self._found, None
        return found

    def connect(self, attachment: Attachment) -> DaemonLink:
        return DaemonLink(self._context, self._sockets, attachment)
