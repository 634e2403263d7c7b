"""Compiles the C sources beside this file on this machine, once; without a compiler there is simply no library.

An object is kept in a cache folder of this user, by source, compiler, CPU and flags. It runs the threads of the
OpenMP library that torch has already loaded (same soname), so both share one team.
"""

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
FLAGS: Final = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=gnu11",
    # Sums may be reordered so that they vectorise; NaN and infinity keep their meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
)
COMPILE_SECONDS: Final = 60


@cache
def library(source: str, *defines: str) -> ctypes.CDLL | None:
    """The compiled `source`, or None where it cannot be had: no compiler, no writable cache, another machine."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(compiled(compiler, FOLDER / source, defines)))
    except (OSError, subprocess.SubprocessError):
        return None


def compiled(compiler: str, source: Path, defines: tuple[str, ...]) -> Path:
    """The shared object for this machine, compiled now unless an earlier process did."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=10).stdout
    cpu = Path("/proc/cpuinfo").read_text("utf8").partition("\n\n")[0]
    flags = next((line for line in cpu.splitlines() if line.startswith(("flags", "Features"))), "")
    command = [compiler, *FLAGS, *defines]
    sources = [path.read_bytes() for path in sorted(source.parent.glob("*.c"))]  # they include each other
    key = hashlib.sha256(repr((sources, version, flags, command)).encode()).hexdigest()
    target = cache_folder() / f"{source.stem}-{key[:32]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            command += [str(source), "-lm", "-o", str(built)]
            subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
            built.replace(target)  # whole or not at all, also with two processes at once
    return target


def cache_folder() -> Path:
    """A folder that only this user can write: what lies in it is executed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "holdfast"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    return folder
