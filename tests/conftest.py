"""What all tests share: the rigs, a mark on everything a test starts, and the check that nothing is left behind."""

from __future__ import annotations

import gc
import glob
import os
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from cntr.linux import procfs

pytest_plugins = ["testkit.engines.rigs"]

# Under nohup(1) and a shell's `&`, signals are ignored. A test's processes would inherit that, and cntr respects it.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

MARK = "TESTMARK"  # marks a test's processes; sessions drop no variable of this name
# Where a mount that leaked out of a nest would appear.
NEST_PLACES = ("/", "/proc", "/dev", "/sys", "/etc", "/usr", "/bin", "/var/lib/cntr")
PATIENCE_SECONDS = 3.0  # processes, and their mount namespaces, end a moment after the test has its result


def _below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places if place != "/") or (
        path == "/" and "/" in places
    )


def marked_processes(mark: str) -> list[str]:
    """``pid command`` of every running process with MARK in its environment, without engines' daemons, which outlive a
    test.
    """
    needle, found = os.fsencode(f"{MARK}={mark}\0"), []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            environment = pathlib.Path("/proc", name, "environ").read_bytes() + b"\0"
            if needle in environment and b"CNTR_RIG=" not in environment:
                command = (
                    pathlib.Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                found.append(f"{name} {command}")
        except OSError:
            continue  # it has just ended, or is a zombie
    return found


def nest_mounts(own: tuple[str, ...]) -> set[str]:
    """The mounts in this mount namespace that a nest could have left: at its usual places, or below the test's own
    paths.
    """
    return {
        f"{mount.mount_id} {mount.mount_point} {mount.fstype} {mount.root}"
        for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
        if _below(mount.mount_point, (*NEST_PLACES, *own)) and "cntr-rig-" not in mount.mount_point
    }


def marked_cgroups(mark: str) -> list[str]:
    return glob.glob(f"/sys/fs/cgroup/*{mark}*") + glob.glob(f"/sys/fs/cgroup/*/*{mark}*")


def own_fds() -> set[str]:
    """This process's fds and their files; without pipes and sockets if an engine was started, as its guard holds some."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return found


def rigs_started() -> set[str]:
    return set(glob.glob(f"/tmp/cntr-rig-{os.getpid()}-*"))


@pytest.fixture
def other_users() -> None:
    """For tests that run cntr as another user, who must be able to reach the checkout and this interpreter."""
    for path in (pathlib.Path(sys.executable), pathlib.Path(sys.executable).resolve(), pathlib.Path(__file__)):
        closed = [parent for parent in path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            pytest.skip(f"other users cannot reach {path}: {closed[-1]} is closed to them (use a checkout elsewhere)")


@pytest.fixture(autouse=True)
def leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[str]:
    """Compare processes, mounts, cgroups and fds before and after, as far as they could be this test's. The value is
    the test's mark: processes have it in their environment, cgroups in their name.
    """
    mark = f"t{os.getpid()}x{secrets.token_hex(4)}"
    monkeypatch.setenv(MARK, mark)
    places = (str(tmp_path), os.environ.get("CNTR_BASE_DIR", "/var/lib/cntr"))
    mounts, fds, rigs = nest_mounts(places), own_fds(), rigs_started()
    yield mark
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        left = [f"process {process}" for process in marked_processes(mark)]
        left += [f"mount {mount}" for mount in nest_mounts(places) - mounts]
        left += [f"cgroup {path}" for path in marked_cgroups(mark)]
        opened = {fd for fd in own_fds() - fds if rigs_started() == rigs or "pipe:" not in fd}
        left += [f"fd {fd}" for fd in opened]
        if not left or time.monotonic() > deadline:
            break
        gc.collect()  # a finished subprocess's open pipes are closed with its object
        time.sleep(0.02)
    assert not left, "left behind: " + "; ".join(left)
