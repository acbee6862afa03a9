"""Resource limits that a session takes over, and those it does not."""

from __future__ import annotations

import errno
import resource

import pytest

from cntr.attach import limits, steps

HIGH = [(-1, -1)] * 16


def with_limit(number: int, soft: int, hard: int) -> list[tuple[int, int]]:
    return [(soft, hard) if index == number else pair for index, pair in enumerate(HIGH)]


def test_limits_that_something_can_run_under_are_taken_as_they_are():
    theirs = with_limit(resource.RLIMIT_NOFILE, 200, 300)
    assert limits.of_session(theirs, core_files=True) == (theirs, [])


def test_limits_that_nothing_can_run_under_are_raised_and_said():
    for number in limits.FLOORS:
        for hard in (0, -1):
            found, raised = limits.of_session(with_limit(number, 0, hard), core_files=True)
            floor = limits.FLOORS[number]
            assert found[number] == (floor, hard if hard == -1 else floor)
            assert raised == [f"{limits.NAMES[number]} 0"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_limit_that_is_reached_is_the_reason_whatever_the_step(number):
    assert steps.CGROUP.advice(number) == steps.COMMON[number]
    assert "--no-cgroup" in steps.CGROUP.advice(errno.EACCES)


def test_core_files_are_forbidden_hard():
    found, raised = limits.of_session(HIGH, core_files=False)
    assert (found[resource.RLIMIT_CORE], raised) == ((0, 0), [])
    assert limits.of_session(HIGH, core_files=True)[0][resource.RLIMIT_CORE] == (-1, -1)
