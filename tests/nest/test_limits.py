"""Resource limits that a session takes over, and those it does not."""

from __future__ import annotations

import errno
import resource

import pytest

from cntr.attach import limits, steps
from cntr.linux import process

HIGH = [(-1, -1)] * 16


def with_limit(number: int, soft: int, hard: int) -> list[tuple[int, int]]:
    return [(soft, hard) if index == number else pair for index, pair in enumerate(HIGH)]


def test_limits_that_something_can_run_under_are_taken_as_they_are():
    theirs = with_limit(resource.RLIMIT_NOFILE, 200, 300)
    assert limits.of_session(theirs, core_files=True) == (theirs, [])


def test_limits_that_nothing_can_run_under_are_raised_and_said():
    for name, floor in limits.FLOORS.items():
        number = getattr(resource, f"RLIMIT_{name}")
        for hard in (0, -1):
            found, raised = limits.of_session(with_limit(number, 0, hard), core_files=True)
            assert found[number] == (floor, hard if hard == -1 else floor)
            assert raised == [f"RLIMIT_{name} 0"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_limit_that_is_reached_is_the_reason_whatever_the_step(number):
    assert steps.CGROUP.advice(number) == steps.COMMON[number]
    assert "--no-cgroup" in steps.CGROUP.advice(errno.EACCES)


def test_core_files_are_forbidden_hard():
    found, raised = limits.of_session(HIGH, core_files=False)
    assert (found[resource.RLIMIT_CORE], raised) == ((0, 0), [])
    assert limits.of_session(HIGH, core_files=True)[0][resource.RLIMIT_CORE] == (-1, -1)


def test_limits_are_those_that_the_c_library_knows():
    for number, name in enumerate(process.RLIMITS):
        if hasattr(resource, f"RLIMIT_{name}"):
            assert getattr(resource, f"RLIMIT_{name}") == number
        none = resource.RLIM_INFINITY  # -1 before Python 3.15
        assert process.limits(number) == tuple(-1 if value == none else value for value in resource.getrlimit(number))
    soft, hard = process.limits(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    assert process.limits(resource.RLIMIT_CORE) == (0, hard)
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    process.limits(resource.RLIMIT_CORE, (soft, hard))
    assert process.limits(resource.RLIMIT_CORE) == (soft, hard)
    with pytest.raises(OSError, match="prlimit"):
        process.limits(len(process.RLIMITS))
