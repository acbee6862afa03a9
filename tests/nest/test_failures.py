"""The error of a failed step names step, path and reason in one line, and a hint in another; nothing is left behind."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import time

import pytest

from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, one_line_and_hint, run
from tests.nest.test_identity import cgroups  # noqa: F401  a fixture


def test_a_command_that_is_not_there_is_127():
    with BusyboxContainer() as container:
        for verb in (container.attach, container.exec):
            assert "no-such-command: No such file" in one_line_and_hint(verb("--", "no-such-command"), 127)
            assert "/no/such/path: No such file" in one_line_and_hint(verb("--", "/no/such/path"), 127)
            assert "'': No such file" in one_line_and_hint(verb("--", ""), 127)  # `"$unset"`
            limited = verb("--", "true", prefix=["prlimit", "--fsize=0"])
            assert "File too large" in one_line_and_hint(limited)
            assert "ulimit -f" in limited.stderr


def test_a_command_that_cannot_be_run_is_126(tmp_path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF but no more")
    garbage.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("no program")
    with BusyboxContainer(files={"/plain": "x"}) as container:
        shares = ["--share", str(plain), "--share", str(garbage)]
        assert "Permission denied" in one_line_and_hint(container.attach(*shares, "--", str(plain)), 126)
        assert "Exec format error" in one_line_and_hint(container.attach(*shares, "--", str(garbage)), 126)
        assert "Permission denied" in one_line_and_hint(container.attach("--", "/"), 126)
        assert "Permission denied" in one_line_and_hint(container.exec("--", "/plain"), 126)


def test_a_working_directory_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with BusyboxContainer() as container:
        assert "change to directory /nowhere: No such file" in one_line_and_hint(
            container.attach("-w", "/nowhere", "--", "true")
        )
        assert "Not a directory" in one_line_and_hint(container.attach("-w", "/etc/shells", "--", "true"))
        own = container.exec("-w", "/nowhere", "--", "true")
        assert "change to the container's directory /nowhere" in one_line_and_hint(own)
        assert "-w takes a directory of the container's" in own.stderr
        shared = container.attach("--share", str(tmp_path), "-w", str(tmp_path), "--", "pwd")
        assert shared.stdout == f"{tmp_path}\n"


def test_a_working_directory_that_the_user_may_not_enter():
    with BusyboxContainer(files={"/closed/file": ""}) as container:
        (pathlib.Path(f"/proc/{container.pid}/root") / "closed").chmod(0o700)
        flags = ["--user", "4711", "-w", "/var/lib/cntr/closed"]
        assert "Permission denied" in one_line_and_hint(container.attach(*flags, "--", "true"))


def test_tools_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    with BusyboxContainer() as container:
        assert "Not a directory" in one_line_and_hint(container.attach("--tools", str(tmp_path / "file"), "--", "true"))
        assert "No such file" in one_line_and_hint(container.attach("--tools", str(tmp_path / "none"), "--", "true"))
        assert "no-such-container" in one_line_and_hint(container.attach("--tools", "no-such-container", "--", "true"))
        (tmp_path / "empty").mkdir()
        assert "true" in one_line_and_hint(container.attach("--tools", str(tmp_path / "empty"), "--", "true"), 127)


def test_cgroup_files_that_cannot_be_opened(cgroups):  # noqa: F811
    """As when cntr itself runs in a container, where cgroup mounts are read-only."""
    script = 'for m in /sys/fs/cgroup/* /sys/fs/cgroup; do mount -o remount,bind,ro $m 2>/dev/null; done; exec "$@"'
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    with BusyboxContainer(cgroups=cgroups) as container:
        message = one_line_and_hint(done := run("attach", str(container.pid), "--", "true", prefix=prefix))
        assert "/sys/fs/cgroup/" in message
        assert "Read-only file system" in message
        assert "join the container's cgroup" in message
        assert "--no-cgroup" in done.stderr
        assert run("attach", str(container.pid), "--no-cgroup", "--", "true", prefix=prefix).returncode == 0


def test_a_limit_on_processes_in_the_containers_cgroup(cgroups):  # noqa: F811
    """A session stays outside. exec's command starts inside, and ends cleanly even if it can't fork."""
    limit = [pathlib.Path(path, "pids.max") for path in cgroups if os.path.exists(f"{path}/pids.max")]
    if not limit:
        pytest.skip("no pids controller here")
    with BusyboxContainer(cgroups=cgroups) as container:
        limit[0].write_text("3")  # the container's own process, the reaper, the command
        script = ["--", "sh", "-c", "cat /proc/1/comm; echo status $?"]
        assert container.attach(*script).stdout == "app\nstatus 0\n"
        assert container.exec("--", "true").returncode == 0
        done = container.exec(*script)
        assert "app" not in done.stdout
        assert "Traceback" not in done.stderr


def test_a_limit_on_processes_in_our_own_cgroup(cgroups, tmp_path):  # noqa: F811
    limit = [pathlib.Path(path) for path in cgroups if os.path.exists(f"{path}/pids.max")]
    if not limit:
        pytest.skip("no pids controller here")
    with BusyboxContainer() as container:
        (limit[0] / "pids.max").write_text("1")

        def join() -> None:
            (limit[0] / "cgroup.procs").write_text("0")

        message = one_line_and_hint(
            done := run("attach", str(container.pid), "--no-cgroup", "--", "true", preexec_fn=join)
        )
        assert "Resource temporarily unavailable" in message
        assert "pids.max" in done.stderr
        for words in (
            ["attach", "no-such-container"],
            ["ps", "--all"],
            ["ps", "--host", "a,b"],  # a thread for each host
            ["cp", f"{container.pid}:/bin", str(tmp_path)],
            ["forward", str(container.pid), "0:80", "--", "true"],
            ["slim", "image:no-such", "-o", str(tmp_path / "slim.tar"), "--", "true"],
        ):
            done = run(*words, preexec_fn=join)
            assert "Traceback" not in done.stderr, done
            assert done.returncode == 0 or done.stderr.startswith("cntr: "), done


@pytest.mark.parametrize("files", [6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32])
def test_a_tiny_limit_on_open_files(files):
    """It works or says what failed, without a traceback or a hang."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with BusyboxContainer(files={"/etc/passwd": "root:x:0:0::/:/bin/sh\n"}) as container:
        done = run("attach", str(container.pid), "--", "true", preexec_fn=limit)
        if done.returncode == 0:
            assert files > 12
        else:
            assert "Too many open files" in one_line_and_hint(done)


def test_a_container_that_dies_while_we_attach():
    """Whenever that happens, the session ends at once with a message or its own status, and nothing is left."""
    outcomes = set()
    for delay in (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3):
        with BusyboxContainer() as container:
            process = subprocess.Popen(
                [*CNTR, "attach", str(container.pid), "--", "sleep", "100"],
                env={**os.environ, "PYTHONPATH": REPOSITORY},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            time.sleep(delay)
            os.kill(container.pid, 9)
            _, error = process.communicate(timeout=15)
            assert process.returncode in (125, 137), error
            assert "Traceback" not in error
            assert error.startswith("cntr: "), error
            outcomes.add(process.returncode)
    assert outcomes


def test_names_and_paths_of_the_container_cannot_write_to_the_terminal():
    """Escape sequences in strings that a container may choose are shown as text."""
    evil = "\x1b]0;owned\x07"
    with BusyboxContainer(files={"/etc/passwd": f"root:x:0:0::/{evil}:/bin/sh\n"}) as container:
        for done in (
            container.attach("--user", evil, "--", "true"),
            container.attach("-w", f"/{evil}", "--", "true"),
            container.attach("--", f"/{evil}"),
            run("attach", evil),
            run("inspect", str(container.pid)),
        ):
            assert "\x1b" not in done.stderr + done.stdout, done


def test_a_target_too_privileged_to_be_kept_out_is_told_in_one_line():
    with BusyboxContainer(capabilities=(1 << 41) - 1) as container:
        done = container.attach("--", "true")
        assert done.returncode == 0
        warning, *more = done.stderr.splitlines()
        assert not more
        assert warning.startswith("cntr: warning: ")
        assert "CAP_SYS_PTRACE" in warning
        told = run("inspect", str(container.pid)).stdout
        assert "protection of the session" in told
        assert "sys_ptrace" in told
    with BusyboxContainer() as container:
        assert container.attach("--", "true").stderr == ""
        assert "protection of the session" not in run("inspect", str(container.pid)).stdout
