"""Where cntr is not installed: another machine by ssh (this one, by a server of the scenario's own), and a toolbox container."""

import contextlib
import shlex

import pytest
from conftest import BASE

SERVER = """
set -e
mkdir -p /run/sshd /tmp/lab-far /root/.ssh && cd /tmp/lab-far
for name in host user; do [ -e $name ] || ssh-keygen -q -t ed25519 -N "" -f $name; done
printf '%s\\n' 'Port 18022' 'ListenAddress 127.0.0.1' 'HostKey /tmp/lab-far/host' 'AuthorizedKeysFile /tmp/lab-far/user.pub' \
    'UsePAM no' 'StrictModes no' 'LogLevel VERBOSE' 'MaxStartups 100' 'PidFile none' >sshd_config
printf '[127.0.0.1]:18022 %s\\n' "$(cat host.pub)" >known
printf '%s\\n' 'Host far' 'HostName 127.0.0.1' 'Port 18022' "User $1" 'IdentityFile /tmp/lab-far/user' 'IdentitiesOnly yes' \
    'UserKnownHostsFile /tmp/lab-far/known' >/root/.ssh/config
exec /usr/sbin/sshd -D -E /tmp/lab-far/log -f /tmp/lab-far/sshd_config
"""
NEAR = "cntr --host far"
RUNS = "pgrep -f '^sleep {}'"


@contextlib.contextmanager
def far(machine):
    """A machine called `far`; who comes there is no root where sudo(8) makes one of them."""
    user = "vagrant" if machine.run("sudo -n true", user="vagrant").returncode == 0 else "root"
    with machine.background(f"sh -c {shlex.quote(SERVER)} sh {user}"):
        machine.wait_until_succeeds("ssh far true")
        try:
            yield
        finally:
            machine.succeed("rm -r /root/.ssh/config /tmp/lab-far")


def connections(machine):
    return int(machine.succeed("grep -c 'Accepted publickey' /tmp/lab-far/log"))


@pytest.mark.no_transport
@pytest.mark.once_a_box
@pytest.mark.tool("sshd")
def test_another_machine_by_ssh(cli, machine, engine):
    """`cntr --host`: bytes, statuses, ps, cp and Docker's ssh:// host, over one connection each, two the first time."""
    with far(machine):
        before = connections(machine)
        machine.succeed("head -c 300000 /dev/urandom >/tmp/lab-bytes")
        through = machine.succeed(f"{NEAR} attach box -- cat </tmp/lab-bytes | sha256sum")
        assert through.split()[0] == machine.succeed("sha256sum </tmp/lab-bytes").split()[0]
        assert connections(machine) == before + 2
        machine.fail(f"{NEAR} attach box -- sh -c 'exit 7'", status=7)
        assert "only in the container" in machine.succeed(f"{NEAR} exec box -- cat /etc/lab-marker")
        machine.succeed(f"{NEAR} cp box:/etc /tmp/lab-etc && {NEAR} cp /tmp/lab-bytes box:/tmp/")
        assert connections(machine) == before + 6
        assert machine.succeed("cat /tmp/lab-etc/lab-marker; rm -r /tmp/lab-etc") == "only in the container"
        root = f"/proc/{engine.pid('box')}/root"
        machine.succeed(f"cmp /tmp/lab-bytes {root}/tmp/lab-bytes && rm {root}/tmp/lab-bytes /tmp/lab-bytes")
        assert "box" in machine.succeed("cntr ps --host far")
        if engine.name == "docker":
            assert machine.succeed("DOCKER_HOST=ssh://far cntr attach box -- hostname 2>/dev/null") == "boxhost"


@pytest.mark.no_transport
@pytest.mark.once_a_box
@pytest.mark.tool("sshd")
def test_a_session_there_ends_with_this_side(cli, machine):
    """By a terminal: its size, the keys, its end; by a pipe: a signal, and SIGKILL of this side. Nothing stays there."""
    with far(machine):
        machine.succeed(f"{NEAR} ps >/dev/null")
        with machine.terminal(f"{NEAR} attach slim -- sh", columns=97, rows=31) as screen:
            screen.type("stty size; echo rea''dy\r")
            screen.expect(r"31 97[\s\S]*ready")
            screen.resize(120, 40)
            screen.type("sleep 0.5; stty size\r")
            screen.expect("40 120")
            screen.type("sleep 4848\r")
            machine.wait_until_succeeds(RUNS.format(4848))
        machine.wait_until_succeeds(f"! {RUNS.format(4848)}")
        note = "echo $$ >/tmp/lab-near; exec"
        trap = "trap 'exit 9' TERM; sleep 4949 & wait"
        with machine.background(f"{note} {NEAR} attach slim -- sh -c {shlex.quote(trap)}") as session:
            machine.wait_until_succeeds(RUNS.format(4949))
            machine.succeed("kill $(cat /tmp/lab-near)")
            assert session.wait(30 * machine.slowness) == 9
        with machine.background(f"{note} {NEAR} attach slim -- sleep 4950"):
            machine.wait_until_succeeds(RUNS.format(4950))
            machine.succeed("kill -9 $(cat /tmp/lab-near)")
            machine.wait_until_succeeds(f"! {RUNS.format(4950)}")
        machine.wait_until_succeeds("! pgrep -f '[-]-far .*/run-'")
        machine.succeed("rm /tmp/lab-near")


@pytest.mark.no_transport
@pytest.mark.engines("docker")
def test_from_a_toolbox_container(cli, machine):
    """`docker run --privileged --pid=host`: names, files and tools; without the flags one line that names them."""
    privileged = "--privileged"
    if machine.driver.name == "here":  # a root with fewer capabilities can't give them all
        held = machine.succeed("capsh --print | sed -n 's/^Bounding set =//p'").replace("cap_", "").split(",")
        known = [
            name for name in held if name not in ("perfmon", "bpf", "checkpoint_restore")
        ]  # Debian 12's Docker has no such words
        privileged = " ".join(f"--cap-add {name}" for name in known) + " --device /dev/fuse"
        privileged += " --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    mounts = "-v /usr:/usr:ro -v /opt:/opt:ro -v /etc/ld.so.cache:/etc/ld.so.cache:ro"

    def toolbox(flags, *words):
        return f"docker run --rm --network none {flags} {mounts} lab/fat:1 cntr {shlex.join(words)}"

    flags = f"{privileged} --pid=host"
    script = f"cat {BASE}/etc/lab-marker; cat /etc/debian_version || echo a toolbox"
    assert (
        machine.succeed(toolbox(flags, "attach", "box", "--", "sh", "-c", script)) == "only in the container\na toolbox"
    )
    assert "only" in machine.succeed(
        toolbox(flags, "attach", "box", "--transport", "fuse", "--", "cat", f"{BASE}/etc/lab-marker")
    )
    assert "only" in machine.succeed(toolbox(flags, "exec", "box", "--", "cat", "/etc/lab-marker"))
    assert "readonly" in machine.succeed(toolbox(flags, "ps"))
    said = machine.fail(toolbox("", "attach", "box"), status=125)
    assert "It wants --pid=host --privileged" in said
