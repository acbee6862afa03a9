"""The paper's use cases other than host-to-container, and its promise that nothing of the host is opened to the
container.
"""

import pytest
from conftest import BASE

CAP_SYS_PTRACE = 19


def test_tools_from_another_container(cntr, machine):
    """Container to container: the tools of `box`, the namespaces and files of `slim`."""
    said = cntr.attach("slim", f"cat /etc/os-release; ls {BASE}", options="--tools box")
    assert "ID=slimbox" in said
    assert "slim-app" in said


@pytest.mark.container("fat")
@pytest.mark.vm
def test_host_from_a_fat_container(cntr, engine, machine):
    """Container to host: from a privileged container with the tools into the host, whose files are at /var/lib/cntr."""
    pid = engine.pid("fat")
    line = cntr.line("pid:1", "cat", f"{BASE}/var/lib/cntr-lab/volume/marker")
    enter = f"nsenter --target {pid} --mount --net --ipc --uts --pid"
    assert machine.succeed(f"{enter} env PATH=/usr/sbin:/usr/bin /opt/cntr/bin/{line}") == "on the volume"


def test_tools_from_a_directory(cntr, machine):
    """--tools DIR: a root file system that belongs to no container."""
    machine.succeed(
        "mkdir -p /tmp/lab-tools; cd /tmp/lab-tools; mkdir -p bin etc proc dev sys tmp var/lib/cntr; "
        "cp $(command -v busybox) /tmp/lab-tools/bin/; ln -sf busybox /tmp/lab-tools/bin/sh; ln -sf busybox /tmp/lab-tools/bin/ls"
    )
    assert "slim-app" in cntr.attach("slim", f"ls {BASE}", options="--tools /tmp/lab-tools")


@pytest.mark.vm
def test_apparmor_label(cntr, engine, machine):
    """On a kernel with AppArmor the session has the container's label."""
    pid = engine.pid("slim")
    theirs = machine.run(f"cat /proc/{pid}/attr/apparmor/current").stdout.strip("\0\n ")
    if not theirs or theirs == "unconfined":
        pytest.skip(f"{machine.spec.engine} gives its containers no AppArmor profile here")
    # Read from outside, as theirs was: a label in a policy namespace (Incus) has a shorter name inside.
    with machine.background(cntr.line("slim", "sleep", "4848")):
        ours = machine.wait_until_succeeds("cat /proc/$(pgrep -f '^sleep 4848')/attr/apparmor/current")
    assert ours.strip("\0\n ") == theirs


@pytest.mark.engines("docker", "podman", "podman-rootless", "runc", "crun", "containerd", "cri", "incus")
def test_session_is_closed_to_the_container(cntr, engine, machine):
    """The container's root can't reach the host through the session's root, working directory, exe, environment or memory."""
    bounding = machine.succeed(f"awk '/CapBnd/ {{ print $2 }}' /proc/{engine.pid('box')}/status")
    # Incus gives all capabilities in a user namespace: then it can, and cntr says so.
    if int(bounding, 16) >> CAP_SYS_PTRACE & 1:
        assert "its processes can see and do what this session can" in machine.run(cntr.line("box", "true")).stderr
        return
    with machine.background(cntr.line("box", "sleep", "4646")):
        machine.wait_until_succeeds("pgrep -f '^sleep 4646'")
        said = engine.exec("box sh /probe.sh")
    assert "looked" in said, f"expected: the probe sees the session's process\nseen: {said!r}"
    assert "open:" not in said, said
    assert "readable:" not in said, said
