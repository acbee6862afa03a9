"""A container that crashes before anybody can look: diagnosed, fixed, started; and an image, from end to end."""

import pytest
from conftest import BASE

from lab.errors import CommandFailed


@pytest.mark.engines("docker", "podman", "podman-rootless", "cri")
@pytest.mark.tool("strace")
def test_a_crash_loop(cntr, engine, machine, crashing):
    """Status, log and strace of its own entrypoint show why it ends; a file is fixed in its layer; the engine starts
    it, and it runs.
    """
    if engine.name == "podman-rootless":
        machine.succeed("ls /run/user/1000/containers")  # root finds users by their engines' files there
    machine.wait_until_succeeds(f"cntr inspect {crashing} | grep -E '^command .*no /etc/mended'")
    shown = {row["property"]: str(row["value"]) for row in cntr.json(f"inspect {crashing}")}
    assert shown["entrypoint check"] == "nothing is missing to start it"
    if engine.name != "podman-rootless":  # before version 5 only its user can read Podman's state
        assert shown["last exit status"] == "3"
    ran = machine.run(f"cntr run {crashing} -- strace -f -e trace=file")
    assert ran.returncode == 3
    assert '"/etc/mended"' in ran.stderr
    assert cntr.attach(crashing, f"echo x > {BASE}/etc/mended; ls {BASE}/etc/mended").split() == [f"{BASE}/etc/mended"]
    assert machine.run(f"cntr run {crashing}").returncode == 3, "what the session wrote is gone"
    machine.succeed(f"cntr exec --write {crashing} -- touch /etc/mended")
    engine.again(crashing)
    assert cntr.attach(crashing, f"ls {BASE}/etc/mended").split() == [f"{BASE}/etc/mended"]
    with pytest.raises(CommandFailed, match="are for stopped containers"):
        machine.succeed(f"cntr exec --write {crashing} -- true")


@pytest.mark.vm
@pytest.mark.engines("docker", "podman", "cri")
def test_its_apparmor_profile(cli, engine, machine, crashing):
    """On a kernel with AppArmor, a session in the stopped container has the profile of the running one."""
    question = f"cntr exec {crashing} -- cat /proc/self/attr/apparmor/current"
    stopped = machine.run(question).stdout.strip("\0\n ")
    machine.succeed(f"cntr exec --write {crashing} -- touch /etc/mended")
    engine.again(crashing)
    assert machine.run(question).stdout.strip("\0\n ") == stopped


@pytest.mark.engines("docker", "podman", "cri")
@pytest.mark.tool("strace")
def test_an_image(cntr, machine, engine):
    """An image is entered with the tools, its command runs under strace, its files are copied out; the image is not
    changed.
    """
    image = {"docker": "lab/box:1", "podman": "localhost/lab/box:1", "cri": "localhost/lab-box:1"}[engine.name]
    target = f"image:{image}"
    assert (
        cntr.attach(target, f"echo x > {BASE}/etc/new; cat {BASE}/etc/lab-marker {BASE}/etc/new")
        == "only in the container\nx"
    )
    assert machine.succeed(f"cntr exec {target} -- ls /etc/lab-marker /bin/sh").split() == [
        "/bin/sh",
        "/etc/lab-marker",
    ]
    machine.fail(f"cntr exec {target} -- ls /etc/new")
    machine.fail(f"cntr exec --write {target} -- true")
    assert machine.succeed(f"cntr cp {target}:/etc/lab-marker /dev/stdout") == "only in the container"
    traced = machine.succeed(
        f"cntr attach {target} -- strace -f -e trace=openat chroot {BASE} /bin/cat /etc/lab-marker 2>&1"
    )
    assert "/etc/lab-marker" in traced


LIMITS = "find /sys/fs/cgroup -path '*/{}*' \\( -name memory.max -o -name memory.limit_in_bytes -o -name pids.max \\)"


@pytest.mark.no_transport
@pytest.mark.engines("docker")
def test_its_limits_of_memory_and_processes(cli, machine):
    """A session in a stopped container is killed by the limits that would kill the container; its
    cgroup is removed with it.
    """
    every = LIMITS.format("cntr-stand-in-")
    before = machine.succeed(every)  # on a host, others may have some
    options = "--network none --memory 32m --memory-swap 32m --pids-limit 40"
    machine.succeed(f"docker create --name limited {options} lab/box:1 /bin/true")
    try:
        with machine.background("cntr exec limited -- sleep 4747"):
            machine.wait_until_succeeds("pgrep -f '^sleep 4747'")
            its = "/proc/$(pgrep -f '^sleep 4747')/cgroup"
            (own,) = set(machine.succeed(f"grep -o 'cntr-stand-in-[^/]*' {its}").split())
            limits = sorted(map(int, machine.succeed(f"{LIMITS.format(own)} -exec cat {{}} +").split()))
            assert limits == [43, 32 << 20], "the three processes of cntr's own do not count"
        machine.fail("cntr exec limited -- busybox dd if=/dev/zero of=/dev/null bs=48M count=1", status=137)
        machine.succeed("cntr exec limited -- busybox dd if=/dev/zero of=/dev/null bs=8M count=1")
        many = "i=0; while [ $i -lt 60 ]; do sleep 3 & i=$((i+1)); done"
        assert "can't fork" in machine.fail(f'cntr exec limited -- sh -c "{many}"'.replace("$", "\\$"))
        machine.wait_until_succeeds(f"! {every} | grep -vxF '{before}' | grep .")
    finally:
        machine.succeed("docker rm limited")
