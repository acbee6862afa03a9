"""The main job: a session with the host's tools beside the container, in the container's namespaces."""

import pytest
from conftest import BASE

KINDS = ("pid", "net", "ipc", "uts", "user", "cgroup")


def test_attach_by_name(cntr):
    """A name is enough: a shell in a container that has none."""
    assert cntr.attach("slim", "echo $CNTR_TARGET") == "slim"


def test_tools_are_the_hosts(cntr, machine):
    """The tools in the session are the machine's own files."""
    question = "sha256sum /usr/bin/python3 /usr/bin/env /bin/sh"
    assert cntr.attach("slim", question) == machine.succeed(question)
    assert cntr.attach("slim", "python3 -c 'print(6 * 7)'") == "42"


def test_files_are_the_containers(cntr):
    """The container's tree is at /var/lib/cntr, whole and writable."""
    assert cntr.attach("slim", f"ls {BASE}/slim-app") == f"{BASE}/slim-app"
    assert cntr.attach("box", f"cat {BASE}/etc/lab-marker") == "only in the container"
    assert (
        cntr.attach("box", f"echo new >{BASE}/tmp/written && cat {BASE}/tmp/written && rm {BASE}/tmp/written") == "new"
    )


def test_identity_files_are_the_containers(cntr):
    """/etc/passwd and /etc/group are the container's: ids are shown by its names."""
    assert cntr.attach("box", "grep -c ^app: /etc/passwd; id -un 1000").split() == ["1", "app"]


def test_namespaces_are_the_containers(cntr, engine, machine):
    """pid, net, ipc, uts, user and cgroup namespace of the shell itself are the container's."""
    pid = engine.pid("box")
    theirs = machine.succeed("; ".join(f"readlink /proc/{pid}/ns/{kind}" for kind in KINDS))
    ours = cntr.attach("box", "; ".join(f"readlink /proc/$$/ns/{kind}" for kind in KINDS))
    assert ours.split() == theirs.split()


def test_the_containers_proc(cntr):
    """/proc is the container's: its program is pid 1 there, and the session is in it."""
    assert cntr.attach("slim", "tr '\\0' ' ' </proc/1/cmdline").rsplit("/")[-1].strip() == "slim-app"
    assert cntr.attach("slim", "readlink /proc/self/ns/pid /proc/$$/ns/pid | uniq | wc -l") == "1"


def test_cgroup_is_the_containers(cntr, engine, machine):
    """The container's resource limits apply to the session: it is in the container's cgroup."""
    pid = engine.pid("box")
    line = cntr.line("box", "sleep", "4141")
    with machine.background(line):
        found = machine.wait_until_succeeds("cat /proc/$(pgrep -f '^sleep 4141')/cgroup")
    assert found == machine.succeed(f"cat /proc/{pid}/cgroup")


def test_hostname_is_the_containers(cntr):
    """The host name in the session is the container's."""
    assert cntr.attach("box", "uname -n") == "boxhost"


def test_environment_of_the_container_is_shown(cntr):
    """The container's variables can be read but do not apply; -e NAME takes one over, with its spaces."""
    assert "GREETING=hello world" in cntr.attach("slim", "cat /run/cntr/environ").splitlines()
    assert cntr.attach("slim", 'printf %s "$GREETING|$LAB_NAME"', options="-e GREETING") == "hello world|"
    assert "/usr/bin" in cntr.attach("slim", "echo $PATH")


def test_environment_can_be_set(cntr):
    """-e sets a variable, -w the directory."""
    assert cntr.attach("slim", "echo $MINE; pwd", options="-e MINE=yes -w /usr/lib").split() == ["yes", "/usr/lib"]


def test_capabilities_are_the_containers(cntr, engine, machine):
    """The session's effective capabilities are the container's, plus the one that protects the session."""
    pid = engine.pid("box")
    theirs = int(machine.succeed(f"awk '/CapBnd/ {{ print $2 }}' /proc/{pid}/status"), 16)
    ours = int(cntr.attach("box", "awk '/CapEff/ { print $2 }' /proc/$$/status"), 16)
    extra = ours & ~theirs & ~(1 << 19)  # CAP_SYS_PTRACE
    assert extra == 0, f"expected: nothing beyond {theirs:x} and CAP_SYS_PTRACE, seen: {extra:x} more"


@pytest.mark.parametrize(
    "words", [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)], ids=["exit", "TERM", "KILL"]
)
def test_exit_status(cntr, words):
    """The session's status is the command's; 128 + signal if it was killed."""
    script, wanted = words
    assert cntr.status("slim", script) == wanted


def test_status_not_found(cntr, machine):
    """127 for a command that does not exist, 126 for one that cannot be executed."""
    assert machine.run(cntr.line("slim", "no-such-command")).returncode == 127
    assert machine.run(cntr.line("slim", "/etc/hostname")).returncode == 126


def test_bytes_pass_unchanged(cntr, machine):
    """Without a terminal stdin and stdout are binary-safe pipes."""
    assert machine.succeed(f"printf 'a\\nb' | {cntr.line('slim', 'cat')} | wc -c") == "3"
    machine.succeed("head -c 1000000 /dev/urandom >/tmp/lab-bytes")
    through = machine.succeed(f"{cntr.line('slim', 'cat')} </tmp/lab-bytes | sha256sum")
    assert through.split()[0] == machine.succeed("sha256sum /tmp/lab-bytes").split()[0]


def test_stderr_is_its_own(cntr, machine):
    """stderr is not mixed into stdout."""
    result = machine.run(cntr.line("slim", "sh", "-c", "echo out; echo err >&2"))
    # Notes about the container's owner and its capabilities.
    said = [line for line in result.stderr.splitlines() if not line.startswith("cntr: ")]
    assert (result.stdout, said) == ("out\n", ["err"])


def test_user_option(cntr):
    """--user by number, with the container's groups."""
    assert cntr.attach("box", "id -u; id -g", options="--user 1000").split() == ["1000", "1000"]
    assert cntr.attach("box", "id -u", options="--user app") == "1000"


def test_nothing_of_the_machine_can_be_written(cntr, machine):
    """The tools' tree is read-only and belongs to nobody; the container's tree and writable shares can be written."""
    assert "Read-only" in cntr.attach("box", "touch /usr/lab-touch 2>&1; true")
    # Otherwise an empty mount covers it.
    is_idmapped = machine.run("cntr doctor | grep -q '^idmapped mounts *yes'").returncode == 0
    shadow = cntr.attach("box", "cat /etc/shadow 2>&1; true")
    assert "Permission denied" in shadow or (not is_idmapped and shadow == "")
    assert cntr.attach("box", f"touch {BASE}/tmp/x && rm {BASE}/tmp/x && echo yes") == "yes"
    machine.fail("test -e /usr/lab-touch")
    machine.succeed("mkdir -p /srv/lab-share && chown 1234:1234 /srv/lab-share")
    cntr.attach("box", "echo kept >/srv/lab-share/file", options="--share /srv/lab-share:rw")
    said = machine.succeed("cat /srv/lab-share/file; stat -c %u /srv/lab-share/file; rm -r /srv/lab-share")
    # the owner of its directory, if idmapping is possible
    assert said.split() == ["kept", "1234" if is_idmapped else "0"]
