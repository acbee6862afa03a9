"""Containers as found in practice: read-only, without rights, with volumes, with user namespaces, with an init."""

import pytest
from conftest import BASE


@pytest.mark.container("readonly")
def test_read_only_root(cntr):
    """A read-only root file system works: nothing is created in it."""
    assert cntr.attach(
        "readonly", f"touch {BASE}/lab 2>/dev/null || echo refused; test -x {BASE}/bin/busybox && echo whole"
    ).split() == [
        "refused",
        "whole",
    ]


@pytest.mark.container("nonroot")
def test_non_root_user(cntr):
    """A container that runs as uid 1000 without any capability: the session is that user."""
    assert cntr.attach("nonroot", "id -u; echo $HOME; test -r /usr/bin/env && echo tools").split()[0] == "1000"


@pytest.mark.container("nonroot")
def test_no_new_privs(cntr):
    """no_new_privs is inherited: sudo in the session gives nothing."""
    assert cntr.attach("nonroot", "awk '/NoNewPrivs/ { print $2 }' /proc/$$/status") == "1"


@pytest.mark.container("nonroot")
def test_no_capabilities(cntr):
    """In a container without capabilities a session holds at most CAP_SYS_PTRACE, which protects it from the container."""
    found = int(cntr.attach("nonroot", "awk '/CapEff/ { print $2 }' /proc/$$/status"), 16)
    assert found & ~(1 << 19) == 0


def test_volume_is_seen(cntr, machine, engine):
    """The container's volume is there, the same files, both ways."""
    assert cntr.attach("box", f"cat {BASE}/data/marker") == "on the volume"
    cntr.attach("box", f"echo from-the-session >{BASE}/data/answer")
    pid = engine.pid("box")
    assert machine.succeed(f"cat /proc/{pid}/root/data/answer; rm /proc/{pid}/root/data/answer") == "from-the-session"


@pytest.mark.engines("docker", "podman", "podman-rootless", "containerd", "nspawn", "runc", "crun", "lxc", "cri")
def test_tmpfs_is_seen(cntr):
    """The container's tmpfs is visible, with what its program has written."""
    assert cntr.attach("box", f"cat {BASE}/scratch/marker") == "in-the-tmpfs"


@pytest.mark.container("userns")
def test_user_namespace(cntr, engine, machine):
    """In a container with its own user namespace the session is root there, and an ordinary user on the host."""
    pid = engine.pid("userns")
    theirs = machine.succeed(f"cat /proc/{pid}/uid_map").split()
    assert cntr.attach("userns", "cat /proc/self/uid_map").split() == theirs
    assert theirs[1] != "0"
    assert cntr.attach("userns", "id -u") == "0"


@pytest.mark.container("boot")
@pytest.mark.systemd
def test_booted_system(cntr, machine):
    """A container with a whole init, registered with machinectl: attached by its machine name."""
    machine.wait_until_succeeds("systemctl --machine=boot is-system-running | grep -E 'running|degraded'", timeout=60)
    assert cntr.attach("boot", "cat /proc/1/comm") == "systemd"


@pytest.mark.systemd
@pytest.mark.vm
def test_systemd_unit(cntr, machine):
    """unit:NAME.service: a hardened service without ProtectProc."""
    machine.succeed(
        "systemd-run -q --collect --unit lab-hard -p Type=exec -p ProtectProc=invisible -p ProtectSystem=strict -p PrivateTmp=yes "
        "-p NoNewPrivileges=yes sleep 600"
    )
    try:
        assert "lab-hard.service" in cntr.attach("unit:lab-hard.service", "cat /proc/self/cgroup")
    finally:
        machine.succeed("systemctl stop lab-hard")
