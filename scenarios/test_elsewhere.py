"""cntr where it is not installed: another machine by ssh (this one, with a server of the scenario's own), and a toolbox
container.
"""

import contextlib
import json
import shlex

import pytest
from conftest import BASE

from lab import provisioning

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
    """A machine called `far`; its user is not root if sudo(8) can be used."""
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
    """With a terminal: its size, keys, and hang-up; with a pipe: a signal, and SIGKILL of the near side. Nothing is
    left on the far side.
    """
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


FLAGS = {
    "": "--privileged --pid=host",
    "-own-pid": "--privileged",
    "-unprivileged": "--pid=host",
    "-own-pid-unprivileged": "",
}


@contextlib.contextmanager
def toolbox(machine, engine, lacking=""):
    """The command line that runs words in a toolbox container of this engine; what of it is LACKING, of FLAGS."""
    if engine.name == "docker":
        flags = FLAGS[lacking]
        # A root with fewer capabilities can't give them all.
        if machine.driver.name == "here" and "--privileged" in flags:
            held = machine.succeed("capsh --print | sed -n 's/^Bounding set =//p'").replace("cap_", "").split(",")
            # Debian 12's Docker has no words for the newest three.
            names = [name for name in held if name not in ("perfmon", "bpf", "checkpoint_restore")]
            less = [*(f"--cap-add {name}" for name in names), "--device /dev/fuse"]
            less += [f"--security-opt {what}=unconfined" for what in ("seccomp", "apparmor", "systempaths")]
            flags = flags.replace("--privileged", " ".join(less))
        mounts = "-v /usr:/usr:ro -v /opt:/opt:ro -v /etc/ld.so.cache:/etc/ld.so.cache:ro"
        yield f"docker run --rm -i --network none {flags} {mounts} lab/fat:1 "
        return
    name = f"toolbox{lacking}"
    engine.reset(name)
    try:
        yield f"sh {provisioning.GUEST_LIB}/provision/{engine.name}.sh exec {name} "
    finally:
        engine.remove(name)


MARKER = f"{BASE}/etc/lab-marker"


@pytest.mark.no_transport
@pytest.mark.engines("docker", "cri")
def test_from_a_toolbox_container(cli, engine, machine):
    """`docker run --privileged --pid=host`, `kubectl debug node/N --profile=sysadmin`: names, files, tools, doctor,
    stopped containers.
    """
    with toolbox(machine, engine) as inside:
        script = shlex.quote(f"cat {MARKER}; cat /etc/debian_version || echo a toolbox")
        said = machine.succeed(f"{inside} cntr attach box -- sh -c {script}", timeout=60)
        assert said == "only in the container\na toolbox"
        assert "only" in machine.succeed(f"{inside} cntr attach box --transport fuse -- cat {MARKER}", timeout=60)
        assert "only" in machine.succeed(f"{inside} cntr exec box -- cat /etc/lab-marker")
        assert "readonly" in machine.succeed(f"{inside} cntr ps")
        features = {
            row["feature"]: row["state"] for row in json.loads(machine.run(f"{inside} cntr doctor --json").stdout)
        }
        assert (features["mount API (open_tree, move_mount)"], features["CAP_SYS_PTRACE"]) == ("yes", "yes")
        assert features[f"engine {'k8s' if engine.name == 'cri' else engine.name}"] == "answers"
        process = json.loads(machine.succeed(f"{inside} cntr inspect box --json"))[0]
        assert process["value"] == engine.pid("box")
        # What `kubectl cntr` does there: one file, by the runtime's exec, and a container's whole name.
        if engine.name == "cri":
            machine.succeed("/opt/cntr/bin/python -m cntr.remote.onefile /tmp/lab.pyz")
            machine.succeed(
                f"{inside} sh -c 'cat >/tmp/lab.pyz; chmod 700 /tmp/lab.pyz' </tmp/lab.pyz && rm /tmp/lab.pyz"
            )
            far = f"{inside} /tmp/lab.pyz --far /tmp/lab.mark attach k8s:lab/box/app -- sh -c"
            assert machine.succeed(f"{far} 'cat {MARKER}; exit 0'", timeout=60) == "only in the container"
            machine.fail(f"{far} 'exit 7'", status=7)


@pytest.mark.not_gate  # tests/engines/test_toolbox.py does this with a real Docker
@pytest.mark.no_transport
@pytest.mark.engines("docker", "cri")
def test_what_does_not_run_from_a_toolbox(cli, engine, machine, crashing):
    """A stopped container is listed, explained, entered and run from a toolbox, as on the machine itself."""
    with toolbox(machine, engine) as inside:
        assert crashing in machine.succeed(f"{inside} cntr ps --all")
        machine.wait_until_succeeds(f"{inside} cntr inspect {crashing} | grep -E '^command .*no /etc/mended'")
        assert (
            machine.succeed(f"{inside} cntr attach {crashing} -- cat {MARKER}", timeout=60) == "only in the container"
        )
        assert machine.succeed(f"{inside} cntr exec {crashing} -- cat /etc/lab-marker") == "only in the container"
        machine.fail(f"{inside} cntr run {crashing}", status=3)


@pytest.mark.not_gate  # tests/engines/test_toolbox.py does this with a real Docker
@pytest.mark.no_transport
@pytest.mark.engines("docker", "cri")
@pytest.mark.parametrize("lacking", [shape for shape in FLAGS if shape])
def test_a_toolbox_that_lacks_a_flag(cli, engine, machine, lacking):
    """One line says what fails, and another which flags are missing."""
    missing = " ".join(flag for flag in ("--pid=host", "--privileged") if flag not in FLAGS[lacking])
    with toolbox(machine, engine, lacking) as inside:
        said = machine.fail(f"{inside} cntr attach box", status=125)
        assert f"It wants {missing} (" in said
