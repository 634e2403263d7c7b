"""Compiles kernels.c for this machine at first use and loads it; None where there is no C compiler.

The library is cached by the hash of its source, flags and processor in the user's cache folder, 0700. It is linked
without an OpenMP runtime of its own and finds torch's: two thread pools would fight for the same cores.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog
import torch

FOLDER = Path(__file__).resolve().parent
SOURCES = ("kernels.c", "templates.c")
COMPILE = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-std=gnu11")
log = structlog.get_logger()


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None (said once in the log) when they cannot be built here."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        log.info("no C compiler: decode runs on torch operations")
        return None
    try:
        share_openmp()
        return ctypes.CDLL(str(built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("native kernels unavailable: decode runs on torch operations", error=str(error))
        return None


def share_openmp() -> None:
    """Makes the OpenMP runtime that torch brought visible to the library that is loaded next."""
    folder = Path(torch.__file__).parent / "lib"
    bundled = [*folder.glob("libgomp*.so*"), *(folder.parent.parent / "torch.libs").glob("libgomp*.so*")]
    ctypes.CDLL(str(bundled[0]) if bundled else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def built(compiler: str) -> Path:
    """Path of the library, compiled now if it is not cached."""
    path = cache_folder() / f"kernels-{key(compiler)}.so"
    if not path.exists():
        compile_to(compiler, path)
    return path


def key(compiler: str) -> str:
    """Changes with the source, the flags, the compiler and the processor's features."""
    parts = [(FOLDER / name).read_bytes() for name in SOURCES]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    features = next(
        (x for x in Path("/proc/cpuinfo").read_bytes().splitlines() if x.startswith(b"flags")), b""
    )
    return hashlib.sha256(b"\0".join([*parts, repr(COMPILE).encode(), version, features])).hexdigest()[:16]


def compile_to(compiler: str, path: Path) -> None:
    """Two steps, because linking with -fopenmp would bring a second OpenMP runtime."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        object_file, shared = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        source = str(FOLDER / SOURCES[0])
        run([compiler, *COMPILE, "-c", source, "-o", str(object_file)])
        run([compiler, "-shared", str(object_file), "-o", str(shared), "-lm"])
        shared.replace(path)  # atomic: another worker may be building the same


def run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=120)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "holdfast"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
