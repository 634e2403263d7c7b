"""python -m tests.kvmanager.attach_again RUN_DIR SESSION: another process asks for a worker's session.

Prints what it is told.
"""

import sys
from pathlib import Path

from holdfast.rundir import RunDir
from kvmanager.client import attach
from kvmanager.errors import KvError
from kvmanager.messages import SessionId
from tests.kvmanager.processes import PATIENCE_S, attach_spec


def main(run_dir: str, session: str) -> None:
    sockets = RunDir(Path(run_dir))
    try:
        attach(sockets, attach_spec(sockets, resume_session=SessionId(bytes.fromhex(session))), PATIENCE_S)
    except KvError as error:
        sys.stdout.write(error.message)


if __name__ == "__main__":
    main(*sys.argv[1:])
