"""Numbers: a container of that name goes before the process, ``pid:N`` is always the process; units by their exact
cgroup.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from cntr import engines
from cntr.engines import processes, units
from cntr.errors import AmbiguousTarget, TargetNotFound
from cntr.linux import procfs
from testkit.engines.rigs_runtimes import Runc
from tests.cli.run import cntr


@pytest.fixture
def sleeper():
    """A process of the host, in no container."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process.pid
        process.kill()


def test_a_container_called_like_a_process_of_the_host(runc: Runc, sleeper, monkeypatch):
    with runc.container(name=str(sleeper)) as container:
        container.use(monkeypatch)
        for target in (str(sleeper), f"runc:{sleeper}"):
            assert engines.resolve(target).pid == container.pid, target
        assert engines.resolve(f"pid:{sleeper}").pid == sleeper
        assert engines.resolve(str(container.pid)).pid == container.pid, "its own pid"
        done = subprocess.run(
            [sys.executable, "-m", "cntr", "exec", str(sleeper), "cat", "/etc/motto"],
            **{"cwd": os.getcwd(), "capture_output": True, "text": True, "env": container.env},
        )
        assert (done.returncode, done.stdout) == (0, "slim\n"), done.stderr


def test_a_container_called_like_another_containers_process(runc, monkeypatch):
    with runc.container() as other, runc.container(name=str(other.pid)) as container:
        container.use(monkeypatch)
        with pytest.raises(AmbiguousTarget) as caught:
            engines.resolve(str(other.pid))
        assert f"runc:{other.pid} (pid {container.pid}" in caught.value.message
        assert f"pid:{other.pid} (pid {other.pid}" in caught.value.message
        assert engines.resolve(f"pid:{other.pid}").pid == other.pid


def test_a_container_called_like_no_process(runc, monkeypatch):
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with runc.container(name=str(gone.pid)) as container:
        assert engines.resolve(container.use(monkeypatch).name).pid == container.pid
    with pytest.raises(TargetNotFound, match=f"pid {gone.pid}: no such process, and no running container of that name"):
        engines.resolve(str(gone.pid))


def test_lxc_containers_have_numbers_for_names(lxc, sleeper):
    with lxc.container(name=str(sleeper)) as container:
        assert engines.resolve(str(sleeper)).pid == container.pid
    assert engines.resolve(str(sleeper)).pid == sleeper


def test_the_error_recognises_a_process_of_the_host(sleeper):
    line = f"pid {sleeper} is in no container: it is a process of this host"
    assert engines.notes(engines.resolve(str(sleeper))) == [line]
    assert engines.notes(engines.resolve(f"pid:{sleeper}")) == [], "asked for by name"


def test_a_number_inside_a_container_is_named_by_the_hint(runc):
    with runc.container():
        with pytest.raises(TargetNotFound) as caught:
            engines.resolve("pid:4194303")
        assert caught.value.hint == "`cntr ps` lists containers with their pids"
        assert "inside a container's pid namespace that is the number of pid" in processes.elsewhere(1)


def test_the_error_recognises_a_kernel_thread():
    if not os.path.exists("/proc/2") or pathlib.Path("/proc/2/cmdline").read_bytes():
        pytest.skip("no kernel thread is seen in this pid namespace")
    with pytest.raises(TargetNotFound, match="pid 2 is a kernel thread"):
        engines.resolve("pid:2")


def test_the_error_recognises_a_zombie():
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(
            TargetNotFound, match=f"pid {zombie.pid} has ended: it is a zombie that its parent, pid {os.getpid()}"
        ):
            engines.resolve(str(zombie.pid))


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/system.slice/web.service", 0),
        ("/system.slice/web.service/payload/x", 0),
        ("/system.slice/system-web.slice/web.service", 0),
        ("/machine.slice/web.service", 0),
        ("/web.service", 0),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", 1000),
        ("/user.slice/user-1000.slice/user@1000.service/web.service", 1000),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/user.slice/user-0.slice/web.service", -1),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/own/web.service", -1),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/other.service/web.service", -1),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/user-0.slice/user@0.service/web.service", -1),
        ("/user.slice/user-1000.slice/user@1001.service/web.service", -1),
        ("/user.slice/user-1000.slice/session-1.scope/web.service", -1),
        ("/system.slice/docker-1234.scope/system.slice/web.service", -1),
        ("/docker/1234/web.service", -1),
        ("/system.slice/x-y.slice/web.service", -1),
        ("/system.slice/web.service/.control", -1),
        ("/../web.service", -1),
        ("/", -1),
        ("", -1),
    ],
)
def test_whose_unit_a_cgroup_is(path, owner):
    assert units.owner_in(path, "web.service") == owner


def test_inspect_and_cp_say_it_too(sleeper, tmp_path):
    line = f"pid {sleeper} is in no container"
    assert line in cntr("inspect", str(sleeper)).stdout
    (tmp_path / "file").write_text("")
    assert line in cntr("cp", f"{sleeper}:{tmp_path}/file", f"{tmp_path}/copy").stderr


STARTING = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(15, b"(web)")
print("named", flush=True)
sys.stdin.readline()
os.execv("/bin/sleep", ["sleep", "600"])
"""


def test_a_unit_is_waited_for_until_it_is_its_program(monkeypatch):
    """systemd's child first makes the unit's root and namespaces; a process that attaches meanwhile would find a root
    that goes away.
    """
    with subprocess.Popen(
        ["python3", "-c", STARTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as unit:
        assert unit.stdin
        assert unit.stdout
        unit.stdout.readline()
        monkeypatch.setattr(units, "STARTING_SECONDS", 0.05)
        with pytest.raises(TargetNotFound, match="has not become its program yet"):
            units._await_program("web.service", unit.pid)
        monkeypatch.setattr(units, "STARTING_SECONDS", 60)
        threading.Timer(0.2, lambda: print(file=unit.stdin, flush=True)).start()
        units._await_program("web.service", unit.pid)
        assert procfs.read(f"/proc/{unit.pid}/comm") == "sleep\n"
        unit.kill()
    units._await_program("web.service", unit.pid)  # it has ended
