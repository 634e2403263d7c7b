"""`make up`: the whole service in the foreground until Ctrl-C or SIGTERM. Dead workers and gateways are restarted."""

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path

from holdfast.rundir import default_path
from tools.service import ROOT, Service


def main() -> int:
    options = arguments()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    service = Service(options.model, options.run_dir, options.port, options.workers)
    with service:
        return watch(service, stop)


def watch(service: Service, stop: threading.Event) -> int:
    """Looks after the parts; 1 when one that is never restarted has died."""
    while not stop.wait(0.2):
        dead = service.supervise()
        if dead is not None:
            print(f"{dead} exited; stopping", file=sys.stderr)
            return 1
    return 0


def demo_model() -> Path:
    """The model that the repository ships."""
    return next((ROOT / "models").glob("*/config.json")).parent


def short_run_dir() -> Path:
    """A fresh private run directory whose socket paths stay short."""
    return Path(tempfile.mkdtemp(prefix="holdfast-"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=demo_model())
    parser.add_argument("--run-dir", type=Path, default=default_path())
    parser.add_argument("--port", type=int, default=50051)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
