"""docs/clients.md: its programs run, its key file is read, and its list of reasons is the whole one."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peers import tell

from gateway.auth import Keys
from gateway.client_calls import ERRORS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "clients.md").read_text("utf8")
PROGRAMS = re.findall(r"^```python\n(.+?)^```", TEXT, re.MULTILINE | re.DOTALL)
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\| `.+$", TEXT, re.MULTILINE)
]
NOT_REASONS = {"DEADLINE_EXCEEDED", "NOT_SERVING", "HOLDFAST_API_KEY"}


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
async def test_the_programs_run_as_they_are(service, tokenizer, program):
    ids = tokenizer.encode("the small fox", add_special_tokens=False).ids
    service.worker(tell(*([i] for i in ids)))
    await service.ready()
    code = program.replace("127.0.0.1:50051", service.target)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the small fox")


def test_the_lines_that_make_a_key_make_one(tmp_path):
    lines = [line[2:] for line in TEXT.splitlines() if line.startswith(("$ KEY=", "$ echo "))]
    script = "\n".join([*lines, 'printf %s "$KEY"'])
    done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    keys = Keys.from_file(tmp_path / "keys")
    assert len(done.stdout) == 64
    assert keys.tenant([("authorization", f"Bearer {done.stdout}")]) == "alice"
    assert keys.tenant([("authorization", "Bearer another")]) is None


def test_every_reason_that_the_gateway_gives_is_listed_and_no_other():
    sources = "".join(path.read_text("utf8") for path in sorted((ROOT / "gateway").glob("*.py")))
    given = (
        set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+|CONFLICT|INTERNAL|UNAUTHENTICATED)"', sources)) - NOT_REASONS
    )
    assert {reason for row in ROWS for reason in re.findall(r"`([A-Z_]+)`", row[2])} == given


def test_every_status_stands_beside_its_error_in_python():
    listed = {row[0].strip("`"): row[1].strip("`") for row in ROWS}
    assert listed == {"ALREADY_EXISTS": "CallError", "INTERNAL": "CallError"} | {
        code.name: kind.__name__ for code, kind in ERRORS.items()
    }
