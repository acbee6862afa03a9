"""What is recorded of a session, and where to."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from cntr.attach import signals
from cntr.audit import other_sinks, session, sinks, who
from testkit.waiting import wait_until
from tests.audit.support import AuditDaemon, audit_lock, only
from tests.nest import busybox
from tests.nest.test_exec_inside import INSIDE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit import Fields

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="records of root's sessions: needs root")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_attach_leaves_a_record_of_its_beginning_and_of_its_end(place, container):
    with place.journal() as journal:
        done = place.cntr(
            *("attach", str(container.pid), "--reason", "INC-7: it hangs", "--privileged", "-e", "TOKEN=hunter2"),
            *("-ve", "SECOND=hunter2", "-veTHIRD=hunter2", "--env=FOURTH=hunter2"),
            *("--share", "/usr", "--", "sh", "-c", "exit 3"),
            env={"SUDO_USER": "alice", "SUDO_UID": "1000", "SSH_CONNECTION": "192.0.2.7 50312 192.0.2.1 22"},
        )
        assert done.returncode == 3, done
    begin, end = journal.entries
    for entry in (begin, end):
        assert only(entry, "CNTR_EVENT_ACTION") == "attach"
        assert only(entry, "CNTR_EVENT_REASON") == "INC-7: it hangs"
        assert entry["CNTR_WIDENING"] == ["--share /usr", "--privileged"]
        assert only(entry, "CNTR_TARGET") == str(container.pid)
        assert only(entry, "CNTR_CONTAINER_RUNTIME") == "pid"
        assert only(entry, "OBJECT_PID") == str(container.pid)
        assert only(entry, "CNTR_USER_ID") == "0"
        assert only(entry, "CNTR_SUDO_USER") == "alice"
        assert only(entry, "CNTR_SOURCE_IP") == "192.0.2.7"
        assert only(entry, "CNTR_HOST_HOSTNAME") == os.uname().nodename
        assert only(entry, "SYSLOG_IDENTIFIER") == "cntr"
        words = entry["CNTR_PROCESS_ARGS"]
        assert words[:2] == ["cntr", "attach"]
        assert words[-4:] == ["--", "sh", "-c", "exit 3"]
        assert "hunter2" not in str(entry)
        assert {"TOKEN=…", "SECOND=…", "-veTHIRD=…", "--env=FOURTH=…"} <= set(words), words
    assert only(begin, "CNTR_EVENT_ID") == only(end, "CNTR_EVENT_ID")
    assert [only(entry, "CNTR_EVENT_TYPE") for entry in (begin, end)] == ["start", "end"]
    assert only(begin, "MESSAGE") == f"alice: pid:{container.pid}: attach began"
    assert only(end, "MESSAGE") == f"alice: pid:{container.pid}: attach ended with status 3"
    assert only(end, "CNTR_PROCESS_EXIT_CODE") == "3"
    assert only(end, "CNTR_EVENT_OUTCOME") == "failure"
    assert int(only(end, "CNTR_EVENT_DURATION")) > 0


@pytest.mark.parametrize("line", ["exec", "cp", "mount"])
def test_so_do_the_other_commands(place, container, tmp_path, line):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "mountpoint").mkdir()
    commands = {
        "exec": ["exec", str(container.pid), "--", "/bin/true"],
        "cp": ["cp", str(tmp_path / "file"), f"{container.pid}:/file"],
        "mount": ["mount", str(tmp_path), str(tmp_path / "mountpoint")],
    }
    with place.journal() as journal:
        # The daemon of a mount records its end on unmount, in its own mount namespace.
        code = (
            "import subprocess, sys, time, os\n"
            "done = subprocess.run([sys.executable, '-m', 'cntr', *sys.argv[1:]])\n"
            "if sys.argv[1] == 'mount' and not done.returncode:\n"
            "    subprocess.run(['umount', sys.argv[-1]], check=True)\n"
            "sys.exit(done.returncode)"
        )
        done = place.cntr(*commands[line], code=code)
        assert (done.returncode, done.stderr) == (0, "")
        deadline = time.monotonic() + 10
        while len(journal.entries) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    begin, end = journal.entries
    assert [only(entry, "CNTR_EVENT_TYPE") for entry in (begin, end)] == ["start", "end"]
    assert only(begin, "CNTR_EVENT_ID") == only(end, "CNTR_EVENT_ID")
    assert only(end, "CNTR_EVENT_ACTION") == line
    assert only(end, "CNTR_PROCESS_EXIT_CODE") == "0"
    if line == "cp":
        assert int(only(end, "CNTR_COPIED_BYTES")) >= 100_000
        assert only(end, "CNTR_TARGET") == str(container.pid)


def test_so_does_forward_of_which_a_child_begins_and_the_parent_ends(place, container):
    with place.journal() as journal:
        done = place.cntr("forward", str(container.pid), "0:9", "--reason", "r", "--", "sh", "-c", "exit 4")
        assert done.returncode == 4, done
        assert place.cntr("forward", "no-such-container", "0:9").returncode == 125
    begin, end = journal.entries
    for field in ("CNTR_EVENT_ID", "CNTR_CONTAINER_NAME", "CNTR_TARGET_PID", "CNTR_PROCESS_PID", "CNTR_EVENT_REASON"):
        assert only(begin, field) == only(end, field) != ""
    assert only(begin, "MESSAGE") == f"root: pid:{container.pid}: forward began"
    assert only(end, "MESSAGE") == f"root: pid:{container.pid}: forward ended with status 4"
    place.policy = "[session]\nreason = true\n[[allow]]\ntargets = ['docker:*']\n"
    assert "a reason is missing" in busybox.one_line_and_hint(
        place.cntr("forward", str(container.pid), "0:9", "--", "true")
    )
    done = place.cntr("forward", str(container.pid), "0:9", "--reason", "r", "--", "true")
    assert "is not allowed for root" in busybox.one_line_and_hint(done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signals.END])
def test_a_stream_that_a_signal_ends_has_its_record(place, container, number):
    """`forward TARGET - PORT`, as in ssh's ProxyCommand. If nobody listens in the container, it waits for its stdin."""
    listener = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "held = [s.accept(), s.accept()]"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", listener], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server,
        place.journal() as journal,
    ):
        port = server.stdout.readline().strip()
        command = [*place.prefix(), *busybox.CNTR, "forward", str(os.getpid()), "-", port]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": busybox.REPOSITORY},
        )
        try:
            wait_until(lambda: journal.entries)
            process.send_signal(number)
            assert process.wait(10) == 128 + (signal.SIGHUP if number == signals.END else number)
        finally:
            process.kill()
            process.communicate()
            server.kill()
    begin, end = journal.entries
    assert only(begin, "CNTR_EVENT_ID") == only(end, "CNTR_EVENT_ID")
    assert only(end, "CNTR_ENDED_BY") == ("`cntr sessions end`" if number == signals.END else f"signal {int(number)}")


def test_an_exec_from_inside_a_session_is_recorded_with_its_reason(place, container):
    with place.journal() as journal:
        done = place.cntr("attach", str(container.pid), "--reason", "why", "--", "sh", "-c", f"{INSIDE} -- id")
        assert done.returncode == 0, done
    assert [
        (only(e, "CNTR_EVENT_ACTION"), only(e, "CNTR_EVENT_TYPE"), only(e, "CNTR_EVENT_REASON"))
        for e in journal.entries
    ] == [
        ("attach", "start", "why"),
        ("exec", "start", "why"),
        ("exec", "end", "why"),
        ("attach", "end", "why"),
    ]


def test_nothing_forges_a_field_or_a_line(place, container, tmp_path):
    """Newlines and escape sequences in arguments, reason and variables; an unknown target leaves no record."""
    forged = "x\nCNTR_USER_ID=1000\nMESSAGE=all is well\x1b]0;owned\x07"
    place.policy = f'[record]\nfile = "{tmp_path}/log"\n'
    os.chmod(tmp_path, 0o755)
    with place.journal() as journal:
        done = place.cntr(
            *("attach", str(container.pid), "--reason", forged, "--", "true", forged),
            env={"SUDO_USER": forged, "TERM": forged},
        )
        assert done.returncode == 0, done
        assert place.cntr("attach", forged).returncode == 125
    assert len(journal.entries) == 2
    for entry in journal.entries:
        assert only(entry, "CNTR_USER_ID") == "0"
        assert only(entry, "CNTR_EVENT_REASON") == session.bounded(forged)
        assert not any("\x1b" in value for values in entry.values() for value in values)
    log = (tmp_path / "log").read_bytes()
    assert log.count(b"\n") == 2
    assert b"\x1b" not in log
    assert lines(tmp_path / "log")[0]["process.args"][-1] == session.bounded(forged)


def test_a_record_too_large_for_a_datagram_comes_in_a_memfd(place, container):
    words = ["w" * 9000] * 40
    with place.journal() as journal:
        done = place.cntr("attach", str(container.pid), "--", "true", *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert journal.large == 2
    begin, _ = journal.entries
    assert len(begin["CNTR_PROCESS_ARGS"]) == 5 + 40
    assert begin["CNTR_PROCESS_ARGS"][-1] == "w" * session.STRING_LIMIT + "… (808 more)"


def test_without_journald_it_is_syslog(container, monkeypatch, tmp_path):
    """/dev/log as a datagram and as a stream socket. It calls the function, since a test has no /dev of its own."""
    fields: Fields = {"message": "m", "process.args": ["cntr", *["w" * 100] * 200], "event.action": "attach"}
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        path = tmp_path / f"log{kind}"
        monkeypatch.setattr(sinks, "JOURNAL", str(tmp_path / "none"))
        monkeypatch.setattr(sinks, "SYSLOG", str(path))
        with socket.socket(socket.AF_UNIX, kind) as server:
            server.bind(str(path))
            if kind == socket.SOCK_STREAM:
                server.listen()
            assert sinks.write("end", fields, sinks.Settings()) == []
            if kind == socket.SOCK_STREAM:
                connection, _ = server.accept()
                with connection:
                    data = connection.recv(1 << 16)
                assert data.endswith(b"\0")
                data = data[:-1]
            else:
                data = server.recv(1 << 16)
        head, _, text = data.decode().partition(": @cee: ")
        assert head.startswith("<85>")
        assert head.endswith(f"cntr[{os.getpid()}]")
        assert json.loads(text)["message"] == "m"
        assert len(data) <= other_sinks.SYSLOG_LIMIT


def _would_block(sender, path):
    try:
        sender.sendto(b"x", path)
    except BlockingIOError:
        return True
    return False


def test_nobody_is_waited_for(monkeypatch, tmp_path):
    """If the journal accepts nothing, the session goes on after PATIENCE_SECONDS, and says so."""
    monkeypatch.setattr(sinks, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(sinks, "SYSLOG", str(tmp_path / "none"))
    monkeypatch.setattr(sinks, "PATIENCE_SECONDS", 0.05)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        full.bind(str(tmp_path / "journal"))
        sender.setblocking(False)
        while not _would_block(sender, str(tmp_path / "journal")):
            pass
        ((sink, error),) = sinks.write("end", {"message": "m", "process.args": []}, sinks.Settings())
    assert sink == "the system's journal"
    assert str(error) == "timed out"


@pytest.mark.usefixtures("other_users")
def test_the_owner_of_a_rootless_container_is_recorded_by_the_uid_outside(place):
    """On the way its user namespace is entered, in which the caller's uid is 0."""
    code = (
        "import os, subprocess, sys, time\nos.setgroups([]); os.setgid(1000); os.setuid(1000)\n"
        "held = subprocess.Popen(['unshare', '-Urm', 'sleep', '60'])\n"
        "while os.readlink(f'/proc/{held.pid}/ns/user') == os.readlink('/proc/self/ns/user'): time.sleep(0.01)\n"
        "done = subprocess.run([sys.executable, '-m', 'cntr', 'attach', str(held.pid), '--', 'id', '-u'])\n"
        "held.kill(); held.wait(); sys.exit(done.returncode)"
    )
    os.chmod(place.run, 0o755)
    with place.journal() as journal:
        os.chmod(place.run / "systemd/journal/socket", 0o666)
        done = place.cntr(code=code)
        assert (done.returncode, done.stdout) == (0, "0\n"), done
    assert [(only(entry, "CNTR_USER_ID"), only(entry, "CNTR_EVENT_TYPE")) for entry in journal.entries] == [
        ("1000", "start"),
        ("1000", "end"),
    ]


# --- the file ----------------------------------------------------------------------------------------------------------


FIELDS: Fields = {"message": 'a "quoted" \\ word', "process.pid": 7, "process.args": ["cntr", "ä"]}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "log"
    path.mkdir(mode=0o755)
    return path


def test_the_file_is_roots_and_grows_by_lines(directory):
    for _ in range(2):
        other_sinks.to_file(f"{directory}/r.jsonl", FIELDS, durable=True)
    assert os.stat(f"{directory}/r.jsonl").st_mode & 0o7777 == 0o600
    assert lines(directory / "r.jsonl") == [FIELDS, FIELDS]


@pytest.mark.parametrize("what", ["link", "fifo", "group-writable", "another's", "directory of another's"])
def test_what_is_not_roots_own_file_is_refused(directory, what):
    path = directory / "r.jsonl"
    if what == "link":
        path.symlink_to(directory / "elsewhere")
    elif what == "fifo":
        os.mkfifo(path, 0o600)
    elif what != "directory of another's":
        path.touch(0o600)
        os.chmod(path, 0o620 if what == "group-writable" else 0o600)
        os.chown(path, 1000 if what == "another's" else 0, 0)
    else:
        os.chown(directory, 1000, 0)
    with pytest.raises(OSError, match=r"not root|regular|symbolic|No such device"):
        other_sinks.to_file(str(path), FIELDS, durable=False)
    assert not (directory / "elsewhere").exists()


def test_a_full_disk_leaves_no_half_line(directory):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=755", "tmpfs", directory], check=True)
    try:
        path, count = directory / "r.jsonl", 0
        large: Fields = {**FIELDS, "event.reason": "r" * 1500}
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while count < 100:
                other_sinks.to_file(str(path), large, durable=True)
                count += 1
        assert lines(path) == [large] * count
    finally:
        subprocess.run(["umount", directory], check=True)


# --- audit -------------------------------------------------------------------------------------------------------------


def test_audits_text_can_be_read_in_one_way_only():
    fields: Fields = {
        "process.args": ["cntr", "attach", "a' res=success", "x\ny"],
        "event.action": "attach",
        "event.id": "0123",
        "cntr.tty": "pts/0 res=success",
    }
    text, end = (
        other_sinks.audit_text(fields, succeeded=False).decode()[:-1],
        other_sinks.audit_text(fields, succeeded=True)[-1],
    )
    assert end == 0
    assert text.endswith(" res=failed")
    assert text.count("res=") == 1
    assert "'" not in text
    assert "terminal=pts/0_res_success " in text
    pairs = dict(word.split("=", 1) for word in text.split(" "))
    assert bytes.fromhex(pairs["cmd"]).decode() == "cntr attach a' res=success x\ny"
    assert other_sinks.audit_value("/usr/bin/x", 500) == '"/usr/bin/x"'


def test_no_length_takes_another_field_from_audit_or_syslog(tmp_path, monkeypatch):
    """Otherwise a long directory, reason or command could push the command, the container or the outcome out of the
    record.
    """
    place = str(tmp_path)
    for _ in range(15):
        place += "/" + "a b" * 80
        os.mkdir(place) if len(place) < 4000 else None
    monkeypatch.setattr(other_sinks, "_where", lambda: place)
    long = session.bounded("é" * 9000)
    fields: Fields = {"message": "m", "event.action": "attach", "event.id": "0123", "event.reason": long}
    fields |= {
        "process.args": ["cntr", "attach", long, *["ü" * 100] * 300],
        "cntr.widening": [long] * 256,
        "cntr.target_pid": 7,
    }
    text = other_sinks.audit_text(fields, succeeded=True)
    assert len(text) < 8560, "the kernel cuts the rest: AUDIT_MESSAGE_TEXT_MAX"
    pairs = dict(word.split("=", 1) for word in text.decode()[:-1].split(" "))
    assert bytes.fromhex(pairs["cmd"]).startswith(b"cntr attach \xc3\xa9")
    assert pairs["res"] == "success"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        other_sinks.to_syslog(str(tmp_path / "log"), {**fields, "container.name": "web"})
        found = json.loads(server.recv(1 << 16).decode().partition(": @cee: ")[2])
    assert set(found) == {*fields, "container.name"}
    assert (found["container.name"], found["cntr.target_pid"], found["process.args"][:2]) == (
        "web",
        7,
        ["cntr", "attach"],
    )


def test_the_callers_limit_on_files_keeps_no_record_away(place, container, tmp_path):
    os.chmod(tmp_path, 0o755)
    log = tmp_path / "log"
    log.write_text("\n" * 20000)
    place.policy = f"[record]\nfile = '{log}'\n"
    with place.journal() as journal:
        # Blocks of 512 bytes: just enough for the memfd of a session.
        prefix = [*place.prefix(), "sh", "-c", 'ulimit -Sf 32; exec "$@"', "sh"]
        done = busybox.run("attach", str(container.pid), "--", "true", *["w" * 8000] * 40, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, ""), done
    kinds = [json.loads(line)["event.type"] for line in log.read_text().splitlines() if line]
    assert kinds == [["start"], ["end"]]
    assert journal.large == 2


@pytest.fixture
def audit():
    """Lock the kernel's audit system, which only one test at a time can use."""
    with audit_lock():
        yield


def test_without_a_daemon_the_kernels_audit_system_says_so(audit):
    fields: Fields = {"process.args": ["cntr", "attach"], "event.action": "attach", "event.id": "0123"}
    try:
        other_sinks.to_audit(fields, succeeded=True)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EPERM):
            pytest.skip(f"no audit here: {error.strerror}")
        assert error.errno == errno.ENOTCONN
    # The kernel's answer about the record itself, without that about the query before it.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, other_sinks.NETLINK_AUDIT) as connection:
        text = other_sinks.audit_text(fields, succeeded=True)
        assert other_sinks._ask_kernel(connection, other_sinks.AUDIT_USER_CMD, text) == b""
        with pytest.raises(OSError, match=r"\[Errno"):
            other_sinks._ask_kernel(connection, 999, b"")


def test_the_audit_daemon_gets_what_is_begun_and_what_is_refused(audit, place, container):
    """The kernel's own record: it says who, and the program is the interpreter, even if a sealed copy runs."""
    mark = f"mark-{os.urandom(6).hex()}"
    place.policy = "[record]\nrequire = true\njournal = false\naudit = true\n[session]\nforbid = ['--privileged']\n"
    try:
        with AuditDaemon() as daemon:
            words = ("--reason", f"{mark} it's down", "--", "true")
            allowed = place.cntr("exec", str(container.pid), *words)
            refused = place.cntr("attach", str(container.pid), "--privileged", *words)
            commands = daemon.user_commands(mark)
            found = [next(commands), next(commands)]
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EPERM, errno.EBUSY):
            raise
        pytest.skip(f"no audit system for a test here: {error.strerror}")
    assert (allowed.returncode, allowed.stderr) == (0, "")
    assert "--privileged is forbidden" in busybox.one_line_and_hint(refused)
    for text, action, result in zip(found, ("exec", "attach"), ("success", "failed")):
        head, _, said = text.partition(" msg='")
        pairs = dict(word.split("=", 1) for word in said.rstrip("'").split(" "))
        assert " uid=0 " in head, text
        assert (pairs["op"], pairs["res"]) == (f"cntr-{action}", result)
        assert re.fullmatch("[0-9a-f]{16}", pairs["cntr_id"]), text
        assert bytes.fromhex(pairs["cmd"]).decode().endswith(f"--reason {mark} it's down -- true")
        assert os.path.realpath(pairs["exe"].strip('"')) == os.path.realpath(sys.executable)


# --- who ---------------------------------------------------------------------------------------------------------------


def test_terminals_have_their_names():
    assert who.terminal(0) == ""
    assert who.terminal(136 << 8 | 3) == "pts/3"
    assert who.terminal((700 & 0xFF) | 136 << 8 | (700 & ~0xFF) << 12) == "pts/700"
    assert who.terminal(4 << 8 | 1) == "tty1"
    assert who.terminal(4 << 8 | 64) == "ttyS0"


def test_behind_sudo_the_connection_is_an_ancestors(monkeypatch):
    script = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]; from cntr.audit import who; print(who.fields().get('source.ip'))"
    )
    inner = [sys.executable, "-c", script, busybox.REPOSITORY]
    clean = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
    for sudo, expected in (({"SUDO_UID": "1000"}, "192.0.2.7"), ({}, "None")):
        outer = f"import subprocess, sys; subprocess.run(sys.argv[1:], env={ {**clean, **sudo}!r}, check=True)"
        done = subprocess.run(
            [sys.executable, "-c", outer, *inner],
            env={**clean, "SSH_CONNECTION": "192.0.2.7 1 192.0.2.1 22"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


LOGIN = 4711


def test_the_login_uid_stays_with_a_session_and_what_it_execs(container):
    """`docker exec` loses it, since its process is a child of the daemon, which has no loginuid."""
    path = "/proc/self/loginuid"
    if not os.path.exists(path):
        pytest.skip("this kernel has no audit (CONFIG_AUDITSYSCALL): no loginuid")
    code = (
        "import os, sys\n"
        f"open('{path}', 'w').write('{LOGIN}')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'cntr', *sys.argv[1:]])"
    )
    for words in (["attach"], ["exec"]):
        done = busybox.run(*words, str(container.pid), "--", "/bin/cat", "/proc/self/loginuid", code=code)
        if "PermissionError" in done.stderr or "Operation not permitted" in done.stderr:
            pytest.skip("CAP_AUDIT_CONTROL is missing here: the login uid cannot be set")
        assert (done.stdout.strip(), done.stderr) == (str(LOGIN), "")


# --- the real one ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("journalctl"), reason="not installed: systemd (journalctl)")
def test_journald_itself_keeps_it(place, container, tmp_path):
    """A real systemd-journald in a mount namespace of its own, read with journalctl."""
    daemon = "/usr/lib/systemd/systemd-journald"
    if not os.path.exists(daemon):
        pytest.skip(f"not installed: {daemon}")
    script = (
        f"mkdir -p /run/systemd/journal /run/log/journal; {daemon} >/run/said 2>&1 & daemon=$!\n"
        "for i in $(seq 300); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done\n"
        '"$@" || echo failed >&2\n'
        "journalctl --sync >&2 2>/dev/null; journalctl -D /run/log/journal -t cntr -o json\n"
        "kill $daemon; wait $daemon"
    )
    place.setup = "printf '[Journal]\\nStorage=volatile\\n' > /etc/systemd/journald.conf"
    command = [sys.executable, "-m", "cntr", "attach", str(container.pid), "--reason", "look", "--", "true"]
    done = subprocess.run(
        [*place.prefix(), "sh", "-c", script, "sh", *command],
        env={**os.environ, "PYTHONPATH": busybox.REPOSITORY},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if not found:
        pytest.skip(f"systemd-journald does not run here: {(place.run / 'said').read_text()[:300]}")
    assert [entry["CNTR_EVENT_TYPE"] for entry in found] == ["start", "end"]
    assert found[0]["CNTR_EVENT_REASON"] == "look"
    assert found[0]["_UID"] == "0"
    assert found[0]["MESSAGE_ID"] == sinks.MESSAGE_IDS["start"]
    assert found[0]["OBJECT_COMM"]
