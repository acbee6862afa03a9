"""Commands other than attach. They do not depend on the transport, so they run once per machine."""

import pytest


def test_exec(cli, machine):
    """cntr exec: the container's own command in its own root."""
    assert machine.succeed("cntr exec box -- cat /etc/lab-marker") == "only in the container"
    assert machine.run("cntr exec box -- sh -c 'exit 9'").returncode == 9


def test_exec_without_a_shell(cli, machine):
    """cntr exec of a program that a shell-less container lacks says so and ends with 127."""
    said = machine.fail("cntr exec slim", status=127)
    assert "/bin/sh" in said


def test_ps(cli, machine):
    """cntr ps lists the machine's containers by name, with the engine's pid."""
    names = {word for row in cli.json("ps") for word in row["name"].split("/")}  # of a pod: NAMESPACE/POD/CONTAINER
    wanted = set(machine.spec.containers)
    assert wanted <= names, f"expected: {sorted(wanted)}\nseen: {sorted(names)}"


def test_inspect(cli):
    """cntr inspect tells, property by property, what a session inherits."""
    assert cli.json("inspect slim")


def test_unknown_name(cli, machine):
    """An unknown name: one line and a hint within two seconds of natural speed, status 125, no traceback."""
    said = machine.fail("cntr attach no-such-container -- true", status=125, timeout=5)
    assert said.startswith("cntr: ")
    assert "no-such-container" in said
    assert "Traceback" not in said


def test_not_root(cli, machine):
    """Without root the message says what is needed."""
    result = machine.run("cntr attach slim -- true", user="vagrant")
    if result.returncode == 0:
        assert machine.spec.engine == "podman-rootless"  # a user may enter their own rootless container
    else:
        assert result.returncode == 125
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) <= 3


def test_copy_out(cli, machine):
    """cntr cp takes a file out of a container that has no tar, and puts one in."""
    machine.succeed("rm -f /tmp/lab-out; cntr cp box:/etc/lab-marker /tmp/lab-out")
    assert machine.succeed("cat /tmp/lab-out") == "only in the container"
    machine.succeed("cntr cp /tmp/lab-out box:/tmp/lab-in")
    assert (
        machine.succeed("cntr exec box -- cat /tmp/lab-in; cntr exec box -- rm /tmp/lab-in") == "only in the container"
    )


def test_doctor(cli, machine):
    """cntr doctor knows this engine and answers in JSON."""
    name = {"cri": "k8s"}.get(machine.spec.engine, machine.spec.engine.split("-")[0])
    assert name in machine.run("cntr doctor --json").stdout


@pytest.mark.vm
def test_machine_goes_back(ready, machine):
    """The lab itself: a machine returns to its fresh state, with its containers, within 10 s (times the host's load)."""
    if not ready.has_snapshot:
        pytest.skip(f"the {machine.driver.name} driver took no snapshot here")
    machine.succeed("touch /root/lab-dirt")
    ready.refresh()
    machine.fail("test -e /root/lab-dirt")
    assert ready.times["restore"] < 10 * max(1.0, machine.slowness / 6)


@pytest.mark.systemd
@pytest.mark.vm
def test_machine_is_healthy(ready, machine):
    """At the end no unit of the machine has failed and the kernel has logged no error."""
    assert machine.succeed("systemctl --failed --no-legend --plain") == ""
    complaints = machine.run("dmesg | grep -E 'BUG:|Oops|WARNING: CPU|hung task|possible recursive'").stdout
    assert complaints == ""
