"""`python -m tests.support.gpu_worker RUN_DIR MODEL write BLOCK VALUE | read BLOCK | open`: a worker of a fake GPU's
pool.

Says one line, `written`, the block's value, the new sequence's id, or the daemon's refusal, and stays until its input
ends.
"""

import sys
from pathlib import Path

from holdfast.rundir import RunDir
from kvmanager.client import Attachment, attach
from kvmanager.errors import KvError
from tests.kvmanager.processes import Worker, attach_spec
from tests.support.fake_gpu import UUID
from tests.support.gpu_pool import layout_of, map_fake


def act(attachment: Attachment, layout, verb: str, block: str, value: str = "") -> str:
    with map_fake(attachment, layout) as mapping:
        if verb == "write":
            mapping.pool[int(block)] = float(value)
            return "written"
        found = mapping.pool[int(block)]
        return str(float(found.min())) if found.min() == found.max() else "mixed"


def main(run_dir: str, model: str, *action: str) -> None:
    sockets = RunDir(Path(run_dir))
    worker_id = f"{model}-{action[0]}"
    stated = {"device": UUID, "model": model, "worker_id": worker_id, "peak_bytes": 2**20}
    spec = attach_spec(sockets, **stated)
    if action[0] == "open":
        with Worker(sockets, **stated) as worker:
            print(worker.open().sequence.hex(), flush=True)
            sys.stdin.read()
        return
    try:
        with attach(sockets, lambda: spec, 30.0) as attachment:
            print(act(attachment, layout_of(spec), *action), flush=True)
            sys.stdin.read()
    except KvError as error:
        print(type(error).__name__, error.message, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
