"""cntr in a container, attaching to others: what it sees depends on how it was started. With real Docker and cntr.pyz."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from cntr.linux import syscalls
from cntr.remote import onefile
from tests.nest.busybox import LAST_CAPABILITY, REPOSITORY, BusyboxContainer

# All cases share a daemon, which the first one starts.
pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]
FIVE_TEN = ["--privileged", "--pid=host", "5.10"]  # with only that kernel's system calls
TOOLBOX, BESIDE = ["--privileged", "--pid=host"], ["--privileged", "--pid=container:web"]
MOTTO = "/etc/motto"  # of the busybox image
SLIM_TOOLS = ["--tools", "image:slim:1"]
CASES = {  # case: (docker's flags, cntr's arguments, status, expected text in stdout or stderr)
    "ps": (TOOLBOX, ["ps", "--all"], 0, " web "),
    "stopped": (TOOLBOX, ["ps", "--all", "--json"], 0, '"state": "created"'),
    "attach": (TOOLBOX, ["attach", "web", "--", "cat", "/etc/toolbox", f"/var/lib/cntr{MOTTO}"], 0, "here\nslim\n"),
    "fuse": (TOOLBOX, ["attach", "web", "--transport", "fuse", "--", "cat", "/etc/toolbox"], 0, "here\n"),
    "exec": (TOOLBOX, ["exec", "web", "--", "/bin/cat", MOTTO], 0, "slim\n"),
    "within": (
        TOOLBOX,
        ["attach", "web", "--share", "/cntr.pyz", "--", "python3", "-IS", "/cntr.pyz", "exec", "--", "/bin/cat", MOTTO],
        0,
        "slim\n",
    ),
    "stand-in": (
        TOOLBOX,
        ["attach", "stopped", "--", "sh", "-c", "cat /etc/toolbox /run/cntr/environ"],
        0,
        "WORD=kept",
    ),
    "its program": (TOOLBOX, ["exec", "stopped", "--", "/bin/cat", MOTTO], 0, "slim\n"),
    "image": (
        TOOLBOX,
        ["attach", "image:slim:1", "--", "cat", "/etc/toolbox", f"/var/lib/cntr{MOTTO}"],
        0,
        "here\nslim\n",
    ),
    "tools": (TOOLBOX, ["attach", "web", *SLIM_TOOLS, "--", "/bin/cat", MOTTO], 0, "slim\n"),
    "own files": (TOOLBOX, ["attach", "dir:/", "--", "cat", "/var/lib/cntr/etc/toolbox"], 0, "here\n"),
    "cp": (TOOLBOX, ["cp", f"web:{MOTTO}", "/dev/stdout"], 0, "slim\n"),
    "5.10: ps": (FIVE_TEN, ["ps", "--all"], 0, " web "),
    "5.10: attach": (
        FIVE_TEN,
        ["attach", "-v", "web", "--", "cat", "/etc/toolbox", f"/var/lib/cntr{MOTTO}"],
        0,
        "tools view: this kernel has no mount_setattr (Linux 5.12): nothing is idmapped, what only some may read is covered",
    ),
    "5.10: fuse": (
        FIVE_TEN,
        ["attach", "web", "--transport", "fuse", *SLIM_TOOLS, "--", "/bin/cat", MOTTO],
        0,
        "slim\n",
    ),
    # A process under a filter can't read others' filters.
    "5.10: exec": (FIVE_TEN, ["exec", "--no-seccomp", "web", "--", "/bin/cat", MOTTO], 0, "slim\n"),
    "5.10: stand-in": (FIVE_TEN, ["exec", "stopped", "--", "/bin/cat", MOTTO], 0, "slim\n"),
    "5.10: cp": (FIVE_TEN, ["cp", f"web:{MOTTO}", "/dev/stdout"], 0, "slim\n"),
    "5.10: doctor": (FIVE_TEN, ["doctor"], 0, "mount_setattr: Function not implemented: kernel 5.12 or newer"),
    "5.6: attach": (
        ["--privileged", "--pid=host", "5.6"],
        ["attach", "web", *SLIM_TOOLS, "--", "/bin/cat", MOTTO],
        0,
        "slim\n",
    ),
    "inspect": (TOOLBOX, ["inspect", "web"], 0, "docker:web"),
    "beside, by pid": (
        BESIDE,
        ["attach", "1", "--", "cat", "/etc/toolbox", f"/var/lib/cntr{MOTTO}"],
        0,
        "here\nslim\n",
    ),
    "beside, by name": (BESIDE, ["attach", "web"], 125, "hint: does cntr run in a container? It wants --pid=host ("),
    "with pids of its own": (  # and with this machine's programs of engines, none of which is running there
        [*TOOLBOX[:1], "-e", "DOCKER_HOST="],
        ["attach", "web"],
        125,
        "hint: does cntr run in a container? It wants --pid=host (",
    ),
    "without privileges": (
        TOOLBOX[1:],
        ["attach", "web"],
        125,
        "hint: does cntr run in a container? It wants --privileged (",
    ),
    "without anything": (
        [],
        ["attach", "web"],
        125,
        "hint: does cntr run in a container? It wants --pid=host --privileged (",
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    pyz = tmp_path_factory.mktemp("toolbox") / "cntr.pyz"
    onefile.write(str(pyz))
    host = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    cases = [[flags, words] for flags, words, *_ in CASES.values()]
    script = ["-m", "tests.engines.toolbox", str(pyz), json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    done = subprocess.run([*host, *script], capture_output=True, text=True, check=False, timeout=290, env=environment)
    if "SKIP " in done.stderr:
        pytest.skip(done.stderr.partition("SKIP ")[2].strip())
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout)))


@pytest.mark.parametrize("case", CASES)
def test_in_a_toolbox(results, case):
    _, _, status, words = CASES[case]
    found, stdout, stderr = results[case]
    assert found == status, (stdout, stderr)
    assert words in stdout + stderr
    if status:
        assert stderr.count("\n") == 2, stderr


STATUS = "while read -r name value; do [ $name = PPid: ] && parent=$value; done < /proc/self/status"
ASK = "from cntr.linux.host import VIEW; import sys; sys.stdout.write(str(VIEW.is_toolbox()))"


def test_the_root_of_a_containers_init_is_not_taken_for_the_hosts(tmp_path):
    """docker run --pid=container:web: that container may be privileged, and this process may have been reparented to
    its init.
    """
    with BusyboxContainer("init", capabilities=(1 << LAST_CAPABILITY + 1) - 1) as container:
        for orphan in (False, True):
            answer = tmp_path / f"answer-{orphan}"
            if not os.fork():
                try:
                    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
                    fd = os.open(f"/proc/{container.pid}/ns/pid", os.O_RDONLY)
                    syscalls.setns(fd, syscalls.CLONE_NEWPID)
                    child = os.fork()
                    if child:
                        os.waitpid(child, 0)
                        os._exit(0)
                    syscalls.setns(own, syscalls.CLONE_NEWNS)
                    syscalls.unshare(syscalls.CLONE_NEWNS)
                    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
                    syscalls.mount("proc", "/proc", "proc", 0, None)
                    script = f"{sys.executable} -c '{ASK}' > {answer}.new; mv {answer}.new {answer}"
                    orphaned = f"({STATUS}; while [ $parent != 1 ]; do sleep 0.01; {STATUS}; done; {script}) &"
                    os.execv("/bin/sh", ["sh", "-c", orphaned if orphan else script])
                finally:
                    os._exit(1)
            os.wait()
            deadline = 200
            while not answer.exists() and deadline:
                deadline -= 1
                subprocess.run(["sleep", "0.05"], check=True)
            assert answer.read_text() == "False"


def test_on_the_host_itself_nothing_is_changed():
    """A private mount namespace with the same root is no toolbox."""
    for prefix in ([], ["unshare", "-m"]):
        done = subprocess.run([*prefix, sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
        assert done.stdout == "False"


def test_modules_come_from_the_toolbox_while_the_root_is_the_hosts(tmp_path: pathlib.Path):
    """Also those first imported then; afterwards the working directory is the same."""
    fake = tmp_path / "json.py"
    fake.write_text("raise SystemExit('the host is imported')")
    code = f"""
import os, sys
from cntr.linux import host
host._is_toolbox = lambda: True
old, before = os.open, os.getcwd()
os.open = lambda path, *rest, **more: old({str(tmp_path)!r} if path == "/proc/1/root" else path, *rest, **more)
sys.path.append("/"); os.chdir("/usr")
with host.VIEW:
    with host.VIEW:
        assert sorted(os.listdir("/")) == ["json.py", "proc"]
        import json, cntr.engines.docker
    assert not os.path.exists("/usr")
assert os.path.exists("/usr/bin") and os.getcwd() == "/usr"
assert json.__file__.startswith("/proc/self/fd/")
assert not [p for p in sys.path + json.__path__ + cntr.engines.__path__ if p.startswith("/proc/")]
import plistlib
"""
    (tmp_path / "proc").mkdir()
    view = f'mount --rbind /proc {tmp_path}/proc && exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", view, code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
