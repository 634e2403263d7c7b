"""The table from peers' errors to statuses is total, and leaks nothing."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from gateway.errors import DOMAIN, WIRE, exhausted, from_wire, invalid, to_status, unsupported
from holdfast.v1 import kvmanager_pb2 as kv
from kvmanager import errors as kv_errors

RICH = "grpc-status-details-bin"


def details(refusal):
    status = to_status(refusal)
    found = status_pb2.Status.FromString(dict(status.trailing_metadata)[RICH])
    assert (found.code, found.message) == (status.code.value[0], status.details)
    return found.details


def unpacked(refusal, kind):
    found = [kind.FromString(item.value) for item in details(refusal) if item.Is(kind.DESCRIPTOR)]
    return found[0] if found else None


def test_every_wire_code_is_told():
    assert set(WIRE) == set(kv.ErrorCode.values())
    assert {cls.code for cls in kv_errors.BY_CODE.values()} <= set(WIRE)


@pytest.mark.parametrize("code", sorted(WIRE))
def test_every_code_has_a_status_with_reason_and_domain(code):
    info = unpacked(from_wire(code, {}), error_details_pb2.ErrorInfo)
    assert info.domain == DOMAIN
    assert info.reason == info.reason.upper()
    assert info.reason.replace("_", "").isalnum()


@pytest.mark.parametrize("code", [*sorted(WIRE), 999])
def test_internals_never_leak(code):
    """Only numbers that the table names pass; never a peer's text."""
    refusal = from_wire(code, {"path": "/run/worker.sock", "needed_blocks": "0x7f", "usable_blocks": "12"})
    assert set(refusal.details) <= {"usable_blocks"}
    assert "/" not in refusal.message


def test_a_bad_field_is_named_in_bad_request():
    refusal = invalid("sampling.top_p", "2 is outside of (0, 1]")
    violation = unpacked(refusal, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "sampling.top_p"
    assert "(0, 1]" in violation.description
    assert unpacked(refusal, error_details_pb2.RetryInfo) is None


def test_a_retry_delay_is_told():
    retry = unpacked(exhausted("QUEUE_FULL", "full", 1.5), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_unsupported_is_unimplemented():
    assert to_status(unsupported("resume", "not built yet")).code is grpc.StatusCode.UNIMPLEMENTED
