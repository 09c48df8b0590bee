"""What is held is never over the limit, and all of it is given back."""

from __future__ import annotations

import pytest

from gateway.errors import Overloaded
from gateway.http.admission import Admission


def test_a_request_that_does_not_fit_is_refused_and_holds_nothing() -> None:
    admission = Admission(requests_max=10, bytes_max=100)
    with admission.admit(60):
        with pytest.raises(Overloaded), admission.admit(41):
            pass
        with admission.admit(40):
            assert (admission.requests, admission.bytes) == (2, 100)
    assert (admission.requests, admission.bytes) == (0, 0)


def test_requests_are_counted_too() -> None:
    admission = Admission(requests_max=1, bytes_max=100)
    with admission.admit(0), pytest.raises(Overloaded) as refused, admission.admit(0):
        pass
    assert refused.value.retry_after_s == 1
    with admission.admit(0):
        pass


def test_a_ticket_grows_only_by_what_is_new() -> None:
    admission = Admission(requests_max=1, bytes_max=100)
    with admission.admit(50) as ticket:
        ticket.hold(30)
        assert admission.bytes == 50
        ticket.hold(100)
        with pytest.raises(Overloaded):
            ticket.hold(101)
        assert admission.bytes == 100
        ticket.release()
        assert admission.bytes == 0
    assert admission.bytes == 0
