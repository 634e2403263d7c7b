"""Generates the committed protobuf and gRPC code; `--check` fails when it is stale.

The committed code comes from grpcio-tools 1.81.1, whose output loads on protobuf 6.33 and 7 alike.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SOURCES = sorted((PROTO / "holdfast" / "v1").glob("*.proto"))


def generate(out: Path) -> None:
    """Runs protoc over every .proto file into `out`; only generate.proto has services."""
    include = [f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    messages = [f"--python_out={out}", f"--pyi_out={out}"]
    services = [f"--grpc_python_out={out}", f"--mypy_grpc_out={out}"]
    protoc([*include, *messages, *map(str, SOURCES)])
    protoc([*include, *services, str(PROTO / "holdfast" / "v1" / "generate.proto")])


def protoc(arguments: list[str]) -> None:
    """One protoc run with the plug-ins of this virtual environment."""
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--plugin=protoc-gen-mypy_grpc={plugin}"]
    subprocess.run([*command, *arguments], check=True)


def stale(fresh: Path) -> list[str]:
    """Names of generated files that differ from the committed ones."""
    made = [path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()]
    return [str(p) for p in made if not same(fresh / p, PROTO / p)]


def same(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        generate(PROTO)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    print("\n".join(f"stale: proto/{name} (run `make proto`)" for name in names), file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
