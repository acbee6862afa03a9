"""The caller's own sandboxes, without root: namespaces that belong to a parent of the program's user namespace
(bubblewrap, Flatpak).
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from tests.cli.run import cntr

USER = 4300 + os.getpid() % 90
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all"]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become another user"),
    pytest.mark.skipif(not shutil.which("bwrap"), reason="not installed: bubblewrap (apt-get install)"),
]


@pytest.fixture(
    params=[
        ["--unshare-all", "--dev", "/dev", "--proc", "/proc"],
        ["--unshare-all", "--dev", "/dev", "--proc", "/proc", "--uid", "77", "--gid", "77"],
        ["--unshare-all", "--share-net", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/sys"],
        ["--unshare-all", "--proc", "/proc"],
    ],
    ids=["dev", "ids", "net", "plain"],
)
def sandbox(request):
    """The pid of the user's sandboxed sleep."""
    reading, writing = os.pipe()
    command = [
        *AS_USER,
        "bwrap",
        "--ro-bind",
        "/",
        "/",
        *request.param,
        "--info-fd",
        str(writing),
        "--",
        "sleep",
        "300",
    ]
    with subprocess.Popen(command, pass_fds=(writing,), start_new_session=True, cwd="/") as process:
        os.close(writing)
        with open(reading) as stream:
            text = stream.read()
        if not text:
            pytest.skip("bwrap may not create namespaces here")
        pid = json.loads(text)["child-pid"]
        children = f"/proc/{pid}/task/{pid}/children"
        while not (found := pathlib.Path(children).read_text().split()):
            os.sched_yield()
        yield int(found[0])
        os.killpg(process.pid, 9)


def test_its_owner_attaches_without_root(sandbox):
    done = cntr(
        "attach", str(sandbox), "--", "sh", "-c", "readlink /proc/self/ns/pid; ls -d /var/lib/cntr/etc", user=USER
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [os.readlink(f"/proc/{sandbox}/ns/pid"), "/var/lib/cntr/etc"], done.stderr


def test_its_owner_runs_its_own_program(sandbox):
    done = cntr("exec", str(sandbox), "sh", "-c", "readlink /proc/self/ns/mnt", user=USER)
    assert (done.returncode, done.stdout.strip()) == (0, os.readlink(f"/proc/{sandbox}/ns/mnt")), done.stderr


def test_inspect_says_which_namespaces_are_its_own(sandbox):
    done = cntr("inspect", str(sandbox), "--json", user=USER)
    rows = {row["property"]: row for row in json.loads(done.stdout)}
    for kind in ("user", "pid", "mnt"):
        shown = rows[f"namespace {kind}"]["value"]
        assert "caller" not in shown, (kind, shown)


@pytest.mark.parametrize("command", ["attach", "exec", "cp"])
def test_a_namespace_that_root_has_made_around_it(command, tmp_path):
    """``ip netns exec vpn sudo -u user bwrap …``: the network is root's, the rest the user's."""
    start = ["unshare", "--net", *AS_USER, "unshare", "--user", "--map-root-user", "--mount", "sleep", "300"]
    with subprocess.Popen(start, cwd="/") as process:
        while pathlib.Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            os.sched_yield()
        target = f"pid:{process.pid}"
        words = [f"{target}:/etc/passwd", "/dev/stdout"] if command == "cp" else [target, "true"]
        done = cntr(command, *words, user=USER)
        assert done.returncode == 125
        assert "its net namespace is none of its own user namespace's" in done.stderr
        assert "hint: only root may enter that one" in done.stderr
        assert cntr(command, *words).returncode == 0
        process.kill()
