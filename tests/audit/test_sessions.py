"""Open sessions: their time limit, who sees them, and how to end one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from cntr.attach import signals
from cntr.audit import live, times
from cntr.engines import store
from cntr.linux.syscalls import CLONE_NEWPID
from testkit import freezing, processes
from testkit.container import NAMESPACES
from testkit.waiting import wait_until
from tests.audit.support import only
from tests.nest import busybox
from tests.nest.tty import CNTR, Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: hand-made containers")


def listed(container):
    done = busybox.run("sessions", "--json")
    assert done.returncode == 0, done
    return [row for row in json.loads(done.stdout) if row["container"] == f"pid:{container.pid}"]


def test_times():
    assert [times.seconds(text) for text in ("30s", "5m", "8h", "1d")] == [30, 300, 28800, 86400]
    assert {times.seconds(text) for text in ("", "m", "5", "0m", "-5m", "1.5h", "٣m", "9999999m", "5 m")} == {None}
    assert [times.shown(float(number)) for number in (30, 300, 28800, 90)] == ["30s", "5m", "8h", "90s"]
    said: list[str] = []
    term = times.Term(61)
    assert not term.is_over(said.append)
    assert 0 < term.patience() <= 1
    term.warning = time.monotonic()
    assert not term.is_over(said.append)
    assert said == ["the session ends in a minute: its time is 61s"]
    assert 60 < term.patience() <= 61
    term.end = time.monotonic()
    assert term.is_over(said.append)
    assert len(said) == 1


@pytest.mark.parametrize("command", ["trap '' HUP; while :; do sleep 1; done", "sleep 100"])
def test_a_session_ends_with_its_time_whatever_its_command_does(place, container, command):
    with place.journal() as journal:
        done = place.cntr("attach", str(container.pid), "--timeout", "1s", "--", "sh", "-c", command)
    assert done.returncode in (129, 137), done
    assert done.stderr == f"cntr: pid:{container.pid}: the session was ended: its time is over: 1s\n"
    assert only(journal.entries[-1], "CNTR_ENDED_BY") == "its time is over: 1s"


def test_stopping_cntr_does_not_stop_the_clock(container):
    command = [*CNTR, "attach", str(container.pid), "--timeout", "1s", "--", "sh", "-c", "echo begun; sleep 100"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=os.setpgrp, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, signal.SIGTSTP)  # Ctrl-Z
        assert process.wait(20) in (129, 137)
        assert "its time is over" in process.stderr.read()


@pytest.mark.parametrize("streams", ["", "</dev/null >/dev/null"])
def test_nor_does_a_terminal_that_stops_its_background_jobs(container, streams):
    """SIGTTOU on writing to it or setting it, or SIGTTIN on reading, would stop the time limit."""
    script = f'stty tostop; set -m; "$@" {streams} & wait $!; echo ended $?'
    command = ("exec", str(container.pid), "--timeout", "1s", "--", "/bin/sleep", "100")
    with Terminal("bash", "-c", script, "bash", *CNTR, *command) as terminal:
        terminal.wait_for(r"its time is over: 1s[^z]*ended (129|137)\s")


HASTY = (
    "import sys; from cntr.audit import times; times.WARNING_SECONDS = 0.3; times.LATE_SECONDS = 0.5\n"
    "from cntr.__main__ import main; main()"
)


@pytest.mark.parametrize("what", ["a terminal", "a pipe"])
def test_nor_does_not_reading_its_output(place, container, tmp_path, what):
    """cntr's warning, or what it relays, is in the way of the time limit; the command has its streams itself."""
    ours, theirs = os.openpty() if what == "a terminal" else os.pipe()
    if what == "a pipe":
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(theirs, b"x" * 4096)
        os.set_blocking(theirs, True)
    streams = {"stdin": theirs, "stdout": theirs} if what == "a terminal" else {"stdin": subprocess.DEVNULL}
    script = f"yes & while sleep 0.1; do date >> {tmp_path}/ran; done" if what == "a terminal" else "sleep 100"
    command = [sys.executable, "-c", HASTY, "attach", str(container.pid), "--timeout", "1s", "--", "sh", "-c", script]
    with place.journal() as journal:
        process = subprocess.Popen(
            [*place.prefix(), *command],
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": busybox.REPOSITORY},
            **streams,  # type: ignore[call-overload]
        )
        try:
            assert process.wait(20) in (129, 137)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            os.close(theirs)
    assert only(journal.entries[-1], "CNTR_ENDED_BY") == "its time is over: 1s"


def test_nor_does_a_file_of_the_callers_that_never_answers(place, container):
    """Its streams may be files of a FUSE server of the caller's: then cntr cannot even be killed. Here it is stopped."""
    command = ("attach", str(container.pid), "--timeout", "1s", "--", "sh", "-c", "echo begun; exec sleep 60.0713")
    with subprocess.Popen(
        [sys.executable, "-c", HASTY, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": busybox.REPOSITORY},
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: not processes.running("sleep", "60.0713"), "the monitor has ended it", 15)
            process.send_signal(signal.SIGCONT)
            assert process.wait(20) in (129, 137)
        finally:
            process.kill()


@pytest.fixture
def users_cgroup():
    """A cgroup that uid 65534 may freeze, as systemd gives users some."""
    with freezing.freezer("cntr-caller") as made:
        for path in (made.directory, made.directory / "cgroup.procs", made.file):
            os.chown(path, 65534, 65534)
        yield made


def test_nor_does_a_cgroup_of_the_callers(place, container, users_cgroup):
    """Frozen, cntr would keep no time, and the session, which is in the container's cgroup, would go on."""
    place.policy = "[session]\nlimit = '1s'\n"
    join = f'echo $$ > {users_cgroup.directory}/cgroup.procs && exec "$@"'
    command = [*CNTR, "attach", str(container.pid), "--", "sh", "-c", "echo begun; exec sleep 100"]
    with subprocess.Popen(
        ["sh", "-c", join, "sh", *place.prefix(), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": busybox.REPOSITORY},
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
            subprocess.run([*user, "sh", "-c", f"echo {users_cgroup.freeze} > {users_cgroup.file}"], check=True)
            assert process.wait(20) in (129, 137)
            assert "its time is over" in process.stderr.read()
        finally:
            process.kill()


def test_a_timer_of_the_callers_keeps_no_record_away(place, container):
    """Timers go through execve(2), and their signals end a process."""
    place.policy = "[record]\nrequire = true\n"
    code = "import os, signal, sys; signal.setitimer(signal.ITIMER_REAL, 1.5); os.execvp(sys.argv[1], sys.argv[1:])"
    with place.journal() as journal:
        prefix = [*place.prefix(), sys.executable, "-c", code]
        done = busybox.run("attach", str(container.pid), "--", "sleep", "3", prefix=prefix)
    assert done.returncode == 0, done
    assert "ended with status 0" in only(journal.entries[-1], "MESSAGE")


def test_the_policys_limit_holds_and_can_be_made_shorter(place, container):
    place.policy = "[session]\nlimit = '1s'\n"
    done = place.cntr("exec", str(container.pid), "--timeout", "8h", "--", "/bin/sleep", "100")
    assert done.returncode == 129, done
    place.policy = "[session]\nlimit = '8h'\n"
    assert place.cntr("exec", str(container.pid), "--timeout", "1s", "--", "/bin/sleep", "100").returncode == 129
    assert "not a time" in busybox.one_line_and_hint(busybox.run("attach", "x", "--timeout", "soon"))


def test_a_session_is_listed_while_it_is_open_and_can_be_ended(container):
    assert listed(container) == []
    with busybox.session(str(container.pid), "--reason", "look\x1b[2J") as process:
        (row,) = listed(container)
        assert (row["command"], row["pid"], row["reason"]) == ("attach", process.pid, "look\\x1b[2J")
        assert re.fullmatch("0m0[0-9]s", row["for"])
        assert "no session has that id" in busybox.one_line_and_hint(busybox.run("sessions", "end", "x"))
        assert busybox.ask(process, "sh -c 'trap \"\" HUP; sleep 100' & trap '' HUP; echo deaf") == "deaf"
        done = busybox.run("sessions", "end", row["id"][:8])
        assert done.returncode == 0, done
        assert process.wait(1) in (129, 137)
        assert process.stderr.read() == f"cntr: pid:{container.pid}: the session was ended: `cntr sessions end`\n"
    assert listed(container) == []


def test_an_exec_inside_is_the_sessions(container):
    for option in (["--timeout", "1h"], ["--record", "f"], ["--reason", "r"]):
        done = busybox.run("exec", *option, "--", "true", env={"CNTR_TARGET": "web"})
        assert "not inside a session" in busybox.one_line_and_hint(done)


def test_at_a_terminal_too_and_the_terminal_is_given_back(container):
    with Terminal(*CNTR, "attach", str(container.pid), "--timeout", "8h", "--", "sh") as terminal:
        terminal.wait_for("#")
        (row,) = listed(container)
        assert row["tty"].startswith("pts/")
        assert busybox.run("sessions", "end", row["id"]).returncode == 0
        assert terminal.process.wait(10) == 129
        assert terminal.mode() == terminal.before


def test_a_forward_is_one_too(container):
    words = [*CNTR, "forward", str(container.pid), "0:9", "--timeout", "1h"]
    with subprocess.Popen(
        [*words, "--", "sh", "-c", "trap '' TERM HUP; exec sleep 60"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert "→" in process.stderr.readline()
        (row,) = listed(container)
        assert (row["command"], row["pid"]) == ("forward", process.pid)
        assert busybox.run("sessions", "end", row["id"]).returncode == 0
        assert process.wait() == 129
        assert process.stderr.read() == f"cntr: pid:{container.pid}: the session was ended: `cntr sessions end`\n"
    done = busybox.run("forward", str(container.pid), "0:9", "--timeout", "1s")
    assert done.returncode == 129
    assert "its time is over: 1s" in done.stderr


@pytest.fixture
def endless():
    """A pipe that stays empty and open."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def test_a_copy_is_one_too(place, container, endless):
    words = ("cp", "/dev/stdin", f"{container.pid}:/copied")
    place.policy = "[session]\nlimit = '1s'\n"
    with place.journal() as journal:
        done = place.cntr(*words, stdin=endless, input=None)
        assert done.returncode == 129, done
        said = busybox.one_line_and_hint(done, 129)
        assert said == f"cntr: pid:{container.pid}: the session was ended: its time is over: 1s"
    assert only(journal.entries[-1], "CNTR_ENDED_BY") == "its time is over: 1s"
    with subprocess.Popen([*CNTR, *words, "--timeout", "1h"], stdin=endless, stderr=subprocess.PIPE, text=True) as one:
        (row,) = wait_until(lambda: listed(container))
        assert (row["command"], row["pid"]) == ("cp", one.pid)
        assert busybox.run("sessions", "end", row["id"]).returncode == 0
        assert one.wait() == 129
        assert "the session was ended: `cntr sessions end`" in one.stderr.read()
    assert listed(container) == []
    assert not [name for name in os.listdir(f"/proc/{container.pid}/root") if "copied" in name]


def test_so_is_a_mount_which_is_unmounted_then(place, tmp_path):
    (tmp_path / "there").write_text("x")
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    place.policy = "[session]\nlimit = '1s'\n[[allow]]\ncommands = ['mount']\n"
    with place.journal() as journal:
        done = place.cntr("mount", str(tmp_path), str(mountpoint), "--foreground")
        assert (done.returncode, done.stderr) == (
            129,
            f"cntr: {mountpoint}: the session was ended: its time is over: 1s\n",
        )
    assert only(journal.entries[-1], "CNTR_ENDED_BY") == "its time is over: 1s"
    assert only(journal.entries[-1], "CNTR_PROCESS_EXIT_CODE") == "129"
    assert busybox.run("mount", str(tmp_path), str(mountpoint)).returncode == 0
    busy = os.open(mountpoint / "there", os.O_PATH)
    try:
        rows = json.loads(busybox.run("sessions", "--json").stdout)
        (row,) = [row for row in rows if row["container"] == str(tmp_path)]
        assert row["command"] == "mount"
        assert busybox.run("sessions", "end", row["id"]).returncode == 0
        assert not mountpoint.is_mount()
    finally:
        os.close(busy)
        if mountpoint.is_mount():
            subprocess.run(["umount", "-l", mountpoint], check=True)


def test_one_that_is_killed_leaves_nothing(container):
    with busybox.session(str(container.pid)) as process:
        assert len(listed(container)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert listed(container) == []


FORGER = """
import os, signal, sys, time
uid, text, kind = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
if kind == "memfd":
    fd = os.memfd_create("cntr-session")
    os.write(fd, text)
else:
    fd = os.open("/memfd:cntr-session (deleted)", os.O_RDONLY)
os.setgroups([]); os.setgid(uid); os.setuid(uid)
print("there", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("text", "kind", "rows"),
    [
        ('{"event.id":"f0f0","user.id":"0","container.runtime":"docker","container.name":"web"}', "memfd", 0),
        (
            '{"event.id":"f0f0","user.id":"1000","user.audit.name":"root","event.start":"never","container.name":["\\u001b[2J"]}',
            "memfd",
            1,
        ),
        ("[" * 50000, "memfd", 0),
        ('{"user.id":', "memfd", 0),
        ("[]", "memfd", 0),
    ],
)
def test_what_a_user_makes_up_is_a_users(text, kind, rows):
    """A row is what its process says, and the process is the user's. Anything else is no row."""
    with subprocess.Popen(
        [sys.executable, "-c", FORGER, "1000", text, kind], stdout=subprocess.PIPE, text=True
    ) as forger:
        try:
            assert forger.stdout.readline() == "there\n"
            found = [one for one in live.sessions() if one.pid == forger.pid]
            assert len(found) == rows
            done = busybox.run("sessions")
            assert done.returncode == 0
            assert "\x1b" not in done.stdout
            if rows:
                assert found[0].user() == store.owner_name(1000), "by the kernel, not by its own record"
                assert busybox.run("sessions", "end", "f0f0").returncode == 0
                assert forger.wait() == -signals.END
        finally:
            forger.kill()


def test_an_id_that_a_user_says_is_also_theirs_ends_roots_all_the_same(container):
    with busybox.session(str(container.pid)) as process:
        wait_until(lambda: listed(container))
        id = listed(container)[0]["id"]
        claim = json.dumps({"event.id": id, "user.id": "1000"})
        with subprocess.Popen(
            [sys.executable, "-c", FORGER, "1000", claim, "memfd"], stdout=subprocess.PIPE, text=True
        ) as forger:
            try:
                assert forger.stdout.readline() == "there\n"
                assert [one.uid for one in live.sessions() if one.text("event.id") == id] == [0, 1000]
                assert busybox.run("sessions", "end", id[:8]).returncode == 0
                process.wait(10)
                assert forger.poll() is None
            finally:
                forger.kill()


def test_of_a_million_claims_one_is_read(monkeypatch):
    opened = []
    monkeypatch.setattr(live, "_mount_id", lambda path: opened.append(path) or "1")
    fd = os.memfd_create("cntr-session")
    os.write(fd, b"{}")
    copies = [fd, *(os.dup(fd) for _ in range(200))]
    assert live._session(os.getpid(), "1") is None
    for one in copies:
        os.close(one)
    assert len(opened) == 1


@pytest.mark.parametrize("host_pids", [False, True])
def test_what_a_containers_root_makes_up_is_nobodys(host_pids):
    """Without a user namespace it has root's uid, and could imitate a session that root wants to see or end."""

    def claim() -> None:
        os.write(os.memfd_create("cntr-session", 0), b'{"user.id": "0", "event.id": "f0f0", "container.name": "web"}')

    namespaces = NAMESPACES & ~(CLONE_NEWPID if host_pids else 0)
    with busybox.BusyboxContainer(as_root=claim, argv=["/bin/sleep", "600"], namespaces=namespaces) as made:
        assert any("cntr-session" in os.readlink(path) for path in pathlib.Path(f"/proc/{made.pid}/fd").iterdir())
        assert "f0f0" not in busybox.run("sessions").stdout
        assert "no session has that id" in busybox.run("sessions", "end", "f0f0").stderr


def test_a_file_of_that_name_is_not_opened(tmp_path):
    """The link's text may name any file, also one on a file system that never answers."""
    root = tmp_path / "root"
    root.mkdir()
    fifo = root / "memfd:cntr-session (deleted)"
    os.mkfifo(fifo)
    code = (
        "import os, sys, time\nfd = os.open(sys.argv[1], os.O_RDWR)\nos.chroot(os.path.dirname(sys.argv[1]))\n"
        "print('there', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(fifo)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "there\n"
            assert [one for one in live.sessions() if one.pid == holder.pid] == []
        finally:
            holder.kill()
