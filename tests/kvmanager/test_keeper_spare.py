"""The spare: another daemon process that waits, and takes over without a new interpreter's start."""

import os
import signal

import pytest

from kvmanager import fds
from tests.kvmanager.processes import PATIENCE_S, Service, Worker, eventually


@pytest.fixture
def service():
    with Service("--kv-memory", "4MiB", "--no-kill-hung") as service:  # a worker may be this process
        yield service


def spare_of(service, number=1):
    """The pid of the spare that was started as the so-maniest."""
    lines = eventually(lambda: service.log("spare daemon started"), lambda lines: len(lines) >= number)
    return lines[number - 1]["pid"]


def gone(pid):
    return fds.start_time(pid) == 0


def test_the_spare_takes_over_from_a_killed_daemon_and_another_one_waits(service):
    first, spare = service.status().pid, spare_of(service)
    with Worker(service.sockets) as worker:
        worker.commit(worker.entry(worker.open()))
        started = fds.start_time(spare)
        os.kill(first, signal.SIGKILL)
        status = eventually(service.status, lambda status: status.pid != first)
        assert status.pid == spare, "no new interpreter was started"
        assert fds.start_time(spare) == started
        assert (status.boot_epoch, status.pools[0].blocks.cached) == (2, 0)
    second = spare_of(service, 2)
    os.kill(spare, signal.SIGKILL)
    assert eventually(service.status, lambda status: status.pid != spare).pid == second
    assert [line["after_s"] for line in service.log("daemon died")] == [0.0, 0.0]


def test_status_knows_of_no_spare_and_it_holds_no_socket_of_the_service(service):
    spare_of(service)
    status = service.status()
    assert (list(status.pools), list(status.workers)) == ([], [])
    links = [os.readlink(f"/proc/{spare_of(service)}/fd/{fd}") for fd in (0, 1, 2)]  # noqa: PTH115
    assert links[0].startswith("pipe:")
    assert not [link for link in links if link.startswith("socket:")]
    assert len(os.listdir(f"/proc/{spare_of(service)}/fd")) == 3  # noqa: PTH208


def test_a_spare_that_dies_is_replaced_and_the_daemon_stays(service):
    pid, spare = service.status().pid, spare_of(service)
    os.kill(spare, signal.SIGKILL)
    second = spare_of(service, 2)
    os.kill(second, signal.SIGKILL)
    spare_of(service, 3)
    waits = [line["after_s"] for line in service.log("spare daemon died")]
    assert waits == [0.1, 0.2]
    assert service.status().pid == pid


def test_sigterm_ends_daemon_and_spare_even_one_that_is_stopped(service):
    pid, spare = service.status().pid, spare_of(service)
    os.kill(spare, signal.SIGSTOP)
    service.process.terminate()
    assert service.process.wait(PATIENCE_S) == 0
    assert gone(pid)
    assert gone(spare)


def test_a_spare_whose_keeper_is_killed_ends_by_itself(service):
    spare = spare_of(service)
    service.process.kill()
    service.process.wait()
    eventually(lambda: gone(spare))


def test_without_a_spare_the_next_daemon_is_started_when_it_is_needed():
    with Service("--no-spare-daemon") as service:
        pid = service.status().pid
        os.kill(pid, signal.SIGKILL)
        eventually(service.status, lambda status: status.pid != pid)
        assert not service.log("spare daemon")


@pytest.mark.full
def test_a_daemon_beside_a_keeper_has_no_spare():
    with Service(keeper_only=True) as apart:
        daemon = apart.start("--keeper", str(apart.sockets.keeper))
        started = apart.status().uptime_seconds
        eventually(apart.status, lambda status: status.uptime_seconds > started + 1.5)
        assert not apart.log("spare daemon")
        daemon.terminate()
        assert daemon.wait(PATIENCE_S) == 0
