"""What is held is never over the limit, and all of it is given back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.errors import Overloaded, ProjectBusy
from gateway.http.admission import Admission


def test_a_request_that_does_not_fit_is_refused_and_holds_nothing() -> None:
    admission = Admission(requests_max=10, bytes_max=100)
    with admission.admit(60) as ticket:
        ticket.hold(60)
        with pytest.raises(Overloaded), admission.admit(41):
            pass
        with admission.admit(40) as other:
            other.hold(40)
            assert (admission.requests, admission.bytes) == (2, 100)
    assert (admission.requests, admission.bytes) == (0, 0)


def test_what_is_declared_and_not_sent_takes_nothing_from_others() -> None:
    admission = Admission(requests_max=10, bytes_max=100)
    with admission.admit(100), admission.admit(100), admission.admit(100) as ticket:
        assert (admission.requests, admission.bytes) == (3, 0)
        ticket.hold(100)
        assert (admission.requests, admission.bytes) == (3, 100)
    assert (admission.requests, admission.bytes) == (0, 0)


def test_strangers_leave_room_for_those_whose_key_is_known() -> None:
    admission = Admission(requests_max=4, bytes_max=100)
    with admission.admit(0, stranger=True) as one, admission.admit(0, stranger=True) as two:
        with pytest.raises(Overloaded), admission.admit(0, stranger=True):
            pass
        one.hold(20)
        two.hold(30)
        for ticket, more in ((one, 21), (two, 31)):
            with pytest.raises(Overloaded):
                ticket.hold(more)
        with admission.admit(50) as known:
            known.hold(50)
            assert (admission.requests, admission.bytes) == (3, 100)
    assert (admission.requests, admission.strangers, admission.bytes, admission.stranger_bytes) == (0, 0, 0, 0)


def test_a_stranger_that_becomes_known_makes_room_for_the_next() -> None:
    admission = Admission(requests_max=2, bytes_max=100)
    with admission.admit(0, stranger=True) as first:
        first.hold(40)
        first.is_known()
        first.hold(60)
        with admission.admit(0, stranger=True) as second:
            second.hold(40)
            assert (admission.requests, admission.bytes, admission.stranger_bytes) == (2, 100, 40)
    assert (admission.requests, admission.strangers, admission.bytes, admission.stranger_bytes) == (0, 0, 0, 0)


def test_a_stranger_alone_may_need_everything() -> None:
    admission = Admission(requests_max=1, bytes_max=100)
    with admission.admit(100, stranger=True) as ticket:
        ticket.hold(100)
        assert admission.stranger_bytes == 100
    assert admission.stranger_bytes == 0


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
        ticket.hold(50)
        ticket.hold(30)
        assert admission.bytes == 50
        ticket.hold(100)
        with pytest.raises(Overloaded):
            ticket.hold(101)
        assert admission.bytes == 100
        ticket.release()
        assert admission.bytes == 0
    assert admission.bytes == 0


def fill(held: ExitStack, admission: Admission, project_id: str) -> int:
    """Let a project have all it may, until ``held`` is left; how many requests that are."""
    taken = 0
    try:
        while True:
            with ExitStack() as one:
                ticket = one.enter_context(admission.admit(0))
                ticket.belongs_to(project_id)
                held.push(one.pop_all())
                taken += 1
    except ProjectBusy:
        return taken


def test_one_project_has_half_of_the_places_or_as_many_as_is_said() -> None:
    for project_requests_max, places in ((0, 50), (1, 1), (70, 70)):
        admission = Admission(requests_max=100, bytes_max=1000, project_requests_max=project_requests_max)
        with ExitStack() as held:
            assert fill(held, admission, "greedy") == places
    assert (admission.requests, admission.by_project) == (0, {})


def test_several_projects_together_leave_places_for_the_others() -> None:
    admission = Admission(requests_max=100, bytes_max=1000)
    with ExitStack() as held:
        assert [fill(held, admission, f"greedy {number}") for number in range(4)] == [50, 25, 13, 6]
        assert fill(held, admission, "small") == 3
    assert (admission.requests, admission.by_project) == (0, {})


def test_a_project_that_is_alone_may_read_one_body_of_any_size_there_is_room_for() -> None:
    admission = Admission(requests_max=10, bytes_max=1000)
    with admission.admit(1000) as ticket:
        ticket.belongs_to("large")
        ticket.hold(1000)
        assert admission.bytes == 1000
    assert admission.bytes == 0
