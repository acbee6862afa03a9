"""Audit: records, read back with journalctl, and root's policy."""

import json

import pytest

pytestmark = pytest.mark.vm  # a policy applies to the whole machine

POLICY = """[record]
require = true
file = "/var/log/cntr-lab.jsonl"
[session]
reason = true
forbid = ["--privileged"]
limit = "8h"
"""


def records(machine, reason):
    """The journal's records of the sessions with that reason, oldest first."""
    said = machine.succeed(f"journalctl --sync; journalctl -t cntr -o json CNTR_EVENT_REASON={reason}")
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.systemd
def test_record(cli, engine, machine):
    """journalctl shows each session: who, what, why, how it ended; the container's own unit shows it too."""
    assert machine.run("cntr attach slim --reason lab-record -- sh -c 'exit 3'").returncode == 3
    begin, end = records(machine, "lab-record")
    assert [entry["CNTR_EVENT_TYPE"] for entry in (begin, end)] == ["start", "end"]
    assert begin["CNTR_EVENT_ID"] == end["CNTR_EVENT_ID"]
    named = begin["CNTR_CONTAINER_NAME"].split("/")  # of a pod: NAMESPACE/POD/CONTAINER
    assert any(part.endswith("slim") for part in named)
    assert begin["CNTR_CONTAINER_RUNTIME"] != "pid"
    processes = begin["OBJECT_PID"]  # journald 247 adds one of its own
    assert set([processes] if isinstance(processes, str) else processes) == {str(engine.pid("slim"))}
    assert begin["_UID"] == "0"
    assert end["CNTR_PROCESS_EXIT_CODE"] == "3"


@pytest.mark.systemd
def test_policy(cli, machine):
    """A policy that requires reasons, forbids options, and records every session in a file of root's."""
    machine.succeed(f"cat > /etc/cntr.conf <<'EOF'\n{POLICY}EOF")
    try:
        for options in ("", "--reason lab-policy --privileged"):
            result = machine.run(f"cntr attach slim {options} -- true")
            assert result.returncode == 125
            assert "policy" in result.stderr
        assert machine.succeed("cntr attach slim --reason lab-policy -- cat /proc/self/loginuid") != ""
        machine.succeed("chmod g+w /etc/cntr.conf")
        assert "others than root" in machine.fail("cntr attach slim --reason lab-policy -- true", status=125)
    finally:
        machine.succeed("rm /etc/cntr.conf")
    log = [
        json.loads(line)
        for line in machine.succeed("cat /var/log/cntr-lab.jsonl; rm /var/log/cntr-lab.jsonl").splitlines()
    ]
    assert [entry["event.type"] for entry in log] == [["denied"], ["denied"], ["start"], ["end"]]
    assert [entry["CNTR_EVENT_TYPE"] for entry in records(machine, "lab-policy")] == ["denied", "start", "end"]


@pytest.mark.systemd
@pytest.mark.once_a_box
def test_audit_daemon(cli, machine):
    """ausearch and journalctl show the same session, and ausearch also who logged in before ssh and
    sudo, and what was refused.
    """
    machine.succeed(
        "printf '[record]\\nrequire = true\\naudit = true\\n[session]\\nforbid = [\"--privileged\"]\\n' >/etc/cntr.conf"
    )
    try:
        # A record is required, too.
        assert "auditd does not run" in machine.fail("cntr attach slim -- true", status=125)
        machine.succeed("systemctl start auditd")
        machine.wait_until_succeeds("auditctl -s | grep -q '^pid [1-9]'")
        machine.succeed("sudo cntr attach slim --reason lab-auditd -- true", user="vagrant")
        machine.fail("sudo cntr attach slim --reason lab-auditd --privileged -- true", status=125, user="vagrant")
        found = "ausearch -m USER_CMD -i --input-logs | grep 'reason lab-auditd' | grep op=cntr-attach"
        began, refused = machine.wait_until_succeeds(f"test $({found} | wc -l) = 2 && {found}").splitlines()
        assert " auid=vagrant " in began
        assert "res=success" in began
        assert "res=failed" in refused
        entry, *_ = records(machine, "lab-auditd")
        assert f" cntr_id={entry['CNTR_EVENT_ID']} " in began
        assert entry["CNTR_USER_AUDIT_NAME"] == "vagrant"
    finally:
        machine.succeed("rm /etc/cntr.conf; systemctl kill auditd; auditctl -e 0")


def test_login_uid(cli, machine):
    """The login uid of a user who came by ssh and sudo is kept in the session and by exec."""
    login = machine.succeed("cat /proc/self/loginuid", user="vagrant")
    if int(login) == (1 << 32) - 1:
        pytest.skip("this machine has no login uid: its kernel runs with audit=0, or its PAM has no pam_loginuid")
    for line in (
        "attach slim -- sleep 4747",
        "exec box -- sleep 4747",
    ):  # read here: in a user namespace it has another number
        with machine.background(f"sudo cntr {line}", user="vagrant"):
            pid = machine.wait_until_succeeds("pgrep -f '^sleep 4747'").split()[0]
            assert machine.succeed(f"cat /proc/{pid}/loginuid") == login
            machine.succeed("pkill -f '^sleep 4747'")
        machine.wait_until_succeeds("! pgrep -f '^sleep 4747'")


def test_sessions(cli, machine):
    """A session is listed while it is open, and can be ended."""
    with machine.background("cntr attach slim --reason lab-sessions -- sleep 4646") as session:
        machine.wait_until_succeeds("pgrep -f '^sleep 4646'")
        (row,) = [row for row in cli.json("sessions") if row["reason"] == "lab-sessions"]
        machine.succeed(f"cntr sessions end {row['id']}")
        assert session.wait(20 * machine.slowness) == 129
        assert "cntr sessions end" in session.output()
    assert "lab-sessions" not in machine.succeed("cntr sessions")


@pytest.mark.tool("script")
def test_recording(cli, machine):
    """The recording of a session at a terminal can be replayed."""
    machine.succeed(
        "rm -f /tmp/lab.cast; script -qec \"cntr attach slim --record /tmp/lab.cast -- sh -c 'echo sho''wn'\" /dev/null"
    )
    assert machine.succeed("stat -c %a /tmp/lab.cast") == "600"
    assert "shown" in machine.succeed("cntr replay --speed 100 /tmp/lab.cast; rm /tmp/lab.cast")
