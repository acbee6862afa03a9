"""B1-B3: what `cntr exec` and a session must take over or leave behind: seccomp filters, keyrings, core files."""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import signal
import struct

import pytest

from cntr.linux import procfs, syscalls
from testkit.waiting import wait_until
from tests.attacks import kit, stalling
from tests.nest.busybox import run

SYS_EXECVE = 59
SYS_GETCPU, SYS_GETPGID, SYS_SYSINFO, SYS_MKDIR = 309, 121, 99, 83
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, FILTER = 22, 2


def install(*rules: tuple[int, int]) -> None:
    """A seccomp filter of one's own: these system calls answer with these errnos (seccomp(2))."""
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # the call's number
    for number, answer in rules:
        code += [struct.pack("HBBI", 0x15, 0, 1, number), struct.pack("HBBI", 0x06, 0, 0, ERRNO | answer)]
    code.append(struct.pack("HBBI", 0x06, 0, 0, ALLOW))
    program = ctypes.create_string_buffer(b"".join(code))
    head = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Filtered(kit.Hostile):
    """A container whose first process has seccomp filters, the first ones first."""

    filters: tuple[tuple[tuple[int, int], ...], ...] = ()

    def _drop(self) -> None:
        # With CAP_SYS_ADMIN, which it is about to lose: without no_new_privs, as engines do.
        for rules in self.filters:
            install(*rules)
        super()._drop()


def filtered(place, accomplice, *filters: tuple[tuple[int, int], ...], **more: object) -> Filtered:
    container = kit.hostile(place, accomplice, **more)
    container.__class__ = Filtered
    container.filters = filters  # type: ignore[attr-defined]
    return container  # type: ignore[return-value]


def answer(done) -> tuple[int, int]:
    assert done.returncode == 0, done
    result, error = done.stdout.split()
    return int(result), int(error)


@pytest.mark.parametrize("uid", [0, 1000])
def test_exec_has_the_containers_filter(accomplice, canary, place, uid):
    with filtered(place, accomplice, ((SYS_GETCPU, 77), (SYS_GETPGID, errno.EOWNERDEAD)), uid=uid) as container:
        assert answer(container.exec("--", "/accomplice", "call", str(SYS_GETCPU))) == (-1, 77)
        assert answer(container.exec("--", "/accomplice", "call", str(SYS_GETPGID))) == (-1, errno.EOWNERDEAD)
        assert answer(container.exec("--user", "1000", "--", "/accomplice", "call", str(SYS_GETCPU))) == (-1, 77)


def test_several_filters_in_their_order(accomplice, canary, place):
    """Of equal strictness the newest answers (seccomp(2)): a wrong order is another errno."""
    filters = (((SYS_GETCPU, 71), (SYS_SYSINFO, 74)), ((SYS_GETCPU, 72), (SYS_GETPGID, 75)), ((SYS_GETCPU, 73),))
    with filtered(place, accomplice, *filters) as container:
        for number, expected in ((SYS_GETCPU, 73), (SYS_GETPGID, 75), (SYS_SYSINFO, 74)):
            assert answer(container.exec("--", "/accomplice", "call", str(number))) == (-1, expected)


def test_a_filter_that_says_the_program_runs(accomplice, canary, place):
    """execve(2) returns 0 and runs nothing: an error about a program that may not be run, not a crash of cntr."""

    def late() -> None:
        if stalling.born() == 0:
            install((SYS_EXECVE, 0))
            signal.pause()

    with kit.hostile(place, accomplice, as_root=late) as container:
        children = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children")
        (child,) = children.read_text().split()
        wait_until(lambda: "Seccomp:\t2" in pathlib.Path(f"/proc/{child}/status").read_text(), "it has its filter")
        for words in (["exec", child], ["attach", child, "--seccomp"]):
            done = run(*words, "--", "/bin/true")
            assert done.returncode == 126, done
            assert "Operation not permitted" in done.stderr
            assert "bug" not in done.stderr


def test_exec_from_inside_a_session_has_it_too(accomplice, canary, place):
    from tests.nest.test_exec_inside import inside

    with filtered(place, accomplice, ((SYS_GETCPU, 77),)) as container:
        done = inside(container, f"-- /accomplice call {SYS_GETCPU}")
        assert answer(done) == (-1, 77)


def test_the_way_to_the_exec_needs_no_call_of_the_filters(accomplice, canary, place):
    """A filter as strict as one may be: nothing but the exec itself and what a static program needs is left."""
    with filtered(
        place,
        accomplice,
        tuple((number, errno.EPERM) for number in (SYS_MKDIR, 57, 58, 56, 165, 155, 272, 308, 101, 161)),
    ) as container:
        assert answer(container.exec("--", "/accomplice", "call", str(SYS_MKDIR))) == (-1, errno.EPERM)


def test_the_session_has_it_if_requested(accomplice, canary, place, transport):
    with filtered(place, accomplice, ((SYS_GETCPU, 77),)) as container:
        done = run(
            "attach",
            str(container.pid),
            "--transport",
            transport,
            "--seccomp",
            "--",
            "/var/lib/cntr/accomplice",
            "call",
            str(SYS_GETCPU),
        )
        assert answer(done) == (-1, 77)


# --- keyrings ---------------------------------------------------------------------------------------------------------

KEYCTL = 250
JOIN_SESSION = 1


def with_a_ticket(name: str, secret: str):
    """For a caller's child: a session keyring of its own with one key (a Kerberos ticket, say)."""

    def prepare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(KEYCTL, JOIN_SESSION, None, 0, 0, 0)
        if libc.syscall(248, b"user", name.encode(), secret.encode(), len(secret), -3) < 0:
            os._exit(9)

    return prepare


def test_control_the_ticket_is_in_the_callers_keyring(accomplice, canary):
    import subprocess

    done = subprocess.run(
        [accomplice, "keys", "ticket"],
        preexec_fn=with_a_ticket("ticket", canary.secret),
        capture_output=True,
        check=False,
    )
    assert canary.secret.encode() in done.stdout


@pytest.mark.parametrize("user", ["0", "1000"])
def test_the_callers_keys_are_not_the_programs(accomplice, canary, place, user):
    with kit.hostile(place, accomplice) as container:
        done = container.exec(
            "--user", user, "--", "/accomplice", "keys", "ticket", preexec_fn=with_a_ticket("ticket", canary.secret)
        )
        assert canary.secret not in done.stdout
        assert "no key" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--user", "1000"], ["--privileged"]])
def test_the_callers_keys_are_not_the_sessions(accomplice, canary, place, transport, flags):
    """A session is traced, robbed of its capabilities, or runs an untrusted tool: the tickets of who called cntr are not in it."""
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(
            container,
            transport,
            *flags,
            command=["/var/lib/cntr/accomplice", "keys", "ticket"],
            preexec_fn=with_a_ticket("ticket", canary.secret),
        )
        assert canary.secret not in done.stdout
        assert "no key" in done.stdout, done


# --- core files -------------------------------------------------------------------------------------------------------


def test_a_session_dumps_no_core(accomplice, canary, place, transport):
    with kit.hostile(place, accomplice) as container:
        limits = dict(
            enumerate(
                procfs.limits(kit.in_session(container, transport, "cat /proc/self/limits", "-w", "/var/lib/cntr"))
            )
        )
        assert limits[4] == (0, 0), "RLIMIT_CORE"


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_container_aborts_a_session(accomplice, canary, place, transport, uid):
    """prlimit(2) lifts a limit for who has the same ids, and SIGABRT does the rest: in the container's own directory."""
    with kit.hostile(place, accomplice, "hunt", "a", canary.path, canary.secret, "same", "1000", uid=uid) as container:
        kit.await_ready(container)
        (container.root / "cores").mkdir()
        (container.root / "cores").chmod(0o777)
        kit.attach(
            container,
            transport,
            "-w",
            "/var/lib/cntr/cores",
            command=["/bin/bash", "-c", "sleep 0.3; sleep 0.3"],
            timeout=20,
        )
        kit.attach(
            container,
            transport,
            "-w",
            "/var/lib/cntr/cores",
            command=["python3", "-c", f"x='{canary.secret}'; import time; time.sleep(0.4)"],
            timeout=20,
        )
        assert os.listdir(container.root / "cores") == []
        assert not [line for line in container.loot if line.startswith("core limit lifted")]


def test_the_core_limit_can_be_raised_by_nobody(accomplice, canary, place, transport):
    with kit.hostile(place, accomplice) as container:
        shown = kit.in_session(container, transport, "ulimit -Hc; ulimit -c unlimited 2>&1; ulimit -Hc")
        assert shown.splitlines()[0] == "0"
        assert shown.splitlines()[-1] == "0"


def test_limits_of_the_containers_can_be_nothing(accomplice, canary, place, transport):
    """0 open files, 0 processes, 0 bytes of memory, of stack, of files: a session comes, or says in one line what it lacks."""
    import resource

    for limit in (
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_AS,
        resource.RLIMIT_STACK,
        resource.RLIMIT_CPU,
    ):
        with kit.hostile(place, accomplice, root=place / f"root{limit}", as_root=lambda: None) as container:
            resource.prlimit(container.pid, limit, (0, 0))
            done = kit.attach(container, transport, command=["true"], timeout=20)
            assert "Traceback" not in done.stderr
            assert done.returncode in (0, 125, 126, 137, 139, 134, 127, 152), (limit, done)
            if done.returncode:
                assert done.stderr, (limit, done)


def test_no_capability_but_the_containers(accomplice, canary, place):
    with kit.hostile(place, accomplice, capabilities=0x20) as container:
        fields = procfs.status(container.exec("--", "cat", "/proc/self/status").stdout)
        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert int(fields[f"Cap{kind}"], 16) & ~0x20 == 0
        assert syscalls.CLONE_NEWNS
