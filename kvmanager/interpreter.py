"""How this project starts its own modules as processes."""

import sys
from collections.abc import Sequence
from pathlib import Path


def python() -> Sequence[str]:
    """Runs a module. Without -P the folder where somebody typed `kvmanager` could replace any module by a file."""
    started_from_here = sys.path[0] in ("", str(Path.cwd()))  # python -m kvmanager, in a checkout
    return (sys.executable, "-m") if started_from_here else (sys.executable, "-P", "-m")
