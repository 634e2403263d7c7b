"""holdfast.logs: one format for every process, on stderr."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

PROCESSES = ["keeper", "kvmanager", "compute", "gateway"]


def run(body, process="compute", log_format="json", log_level="info"):
    """Stderr's lines of a real process that logs by `body`."""
    code = f"""
import structlog, threading
from holdfast import logs
logs.configure({process!r}, {log_format!r}, {log_level!r})
log = structlog.get_logger()
{body}"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "", "stdout is data's"
    return done.stderr.splitlines()


def test_every_process_writes_the_same_keys():
    lines = [
        json.loads(line) for name in PROCESSES for line in run("log.info('ready', port=1)", process=name)
    ]
    assert [line["process"] for line in lines] == PROCESSES
    assert {tuple(sorted(line)) for line in lines} == {("level", "message", "port", "process", "timestamp")}
    assert {(line["level"], line["message"], line["port"]) for line in lines} == {("info", "ready", 1)}


def test_the_time_is_iso_and_utc():
    (line,) = run("log.info('ready')")
    stamp = datetime.fromisoformat(json.loads(line)["timestamp"])
    assert stamp.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - stamp).total_seconds()) < 60


def test_every_thread_names_the_process():
    """Threads begin with an empty context; the I/O thread of a worker is one."""
    body = """
thread = threading.Thread(target=lambda: log.info('from a thread'))
thread.start(); thread.join()
structlog.contextvars.clear_contextvars()
log.info('after a clear')
"""
    assert [json.loads(line)["process"] for line in run(body)] == ["compute", "compute"]


def test_what_the_caller_binds_is_on_its_lines_only():
    body = """
with structlog.contextvars.bound_contextvars(request_id='r1'):
    log.info('in')
log.info('out')
"""
    inside, outside = map(json.loads, run(body))
    assert inside["request_id"] == "r1"
    assert "request_id" not in outside


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_lower_levels_are_silent(level, seen):
    body = "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')"
    assert len(run(body, log_level=level)) == seen


FAILING = """
def fail(secret):
    raise ValueError('broken')
try:
    fail('hunter2')
except ValueError:
    log.exception('failed')
"""


def test_an_exception_is_one_line_of_json_without_the_values_of_variables():
    (line,) = run(FAILING)
    assert json.loads(line)["exception"][0]["exc_value"] == "broken"
    assert json.loads(line)["exception"][0]["frames"][-1]["name"] == "fail"
    assert "hunter2" not in line


def test_what_json_does_not_know_is_written_all_the_same():
    (line,) = run("log.info('odd', data=b'x', kind=ValueError)")
    assert json.loads(line)["data"] == "b'x'"


def test_auto_is_json_where_no_terminal_is():
    (line,) = run("log.info('ready')", log_format="auto")
    assert json.loads(line)["message"] == "ready"


def test_pretty_is_for_people():
    lines = run("log.info('ready', port=1)\n" + FAILING, log_format="pretty")
    assert "ready" in lines[0]
    assert "port=1" in lines[0]
    assert "process=compute" in lines[0]
    assert any("ValueError: broken" in line for line in lines)
    assert not any("{" in line for line in lines)
