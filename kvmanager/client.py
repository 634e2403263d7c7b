"""What the KV manager publishes to its users. Imports neither numpy nor torch.

    worker    attach(sockets, spec, timeout_s) -> Attachment     the memory and the session
              DaemonLink(context, sockets, attachment)           numbered messages and replies, one thread
    gateway   AsyncDaemonClient(context, sockets)                snapshot, read_record, find_request
    CLI       AdminClient(sockets, timeout_s)                    request(body) -> reply body

Errors are those of kvmanager.errors. Workers speak in kvmanager.messages; the gateway and the CLI get protobuf
messages of holdfast.v1.kvmanager_pb2, which are read-only views of the daemon's state.
"""

from kvmanager.attachment import Attached, AttachSpec
from kvmanager.client_attach import Attachment, attach
from kvmanager.client_calls import AdminClient, AsyncDaemonClient
from kvmanager.client_link import DaemonLink

__all__ = [
    "AdminClient",
    "AsyncDaemonClient",
    "AttachSpec",
    "Attached",
    "Attachment",
    "DaemonLink",
    "attach",
]
