"""`make demo` does what it promises."""

import subprocess
import sys

from tools.service import ROOT, environment


def test_the_story_goes_on_when_its_worker_is_killed_and_a_second_one_shares_its_opening() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
        timeout=170,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.count("Once upon a time there was a small fox named Pip") == 2
    assert "[kill -9 " in out.stderr
    assert "the same words" in out.stderr
    assert "cached 42" in out.stderr  # two blocks, and ten slots of a third by a copy
    assert "clean" in out.stdout
