"""A worker in a process of its own: attaches, computes one prompt, then beats until it is killed or let go.

python -m tests.kvmanager.worker_process RUN_DIR WORKER_ID. One line on stdout once the prompt is recorded.
"""

import json
import sys
from pathlib import Path

import zmq

from holdfast.rundir import RunDir
from kvmanager.messages import Heartbeat, WorkerState
from tests.kvmanager.processes import Worker


def main(run_dir: str, worker_id: str) -> None:
    with Worker(RunDir(Path(run_dir)), worker_id=worker_id) as worker:
        opened = worker.open()
        worker.commit(worker.entry(opened))
        worker.take(4)
        line = {"sequence": opened.sequence.hex(), "cached_len": opened.cached_len}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        beat_until_the_end(worker)


def beat_until_the_end(worker: Worker) -> None:
    poller = zmq.Poller()
    poller.register(worker.attachment.fileno(), zmq.POLLIN)
    step = 0
    while not poller.poll(200):
        step += 1
        worker.link.heartbeat(Heartbeat(state=WorkerState.READY, step=step, busy=True, running=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
