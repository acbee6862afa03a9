"""``cntr doctor``: a row for each feature, by a real probe that leaves nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from cntr.cli import reports
from tests.cli.run import CNTR, cntr

FEATURES = (
    *("mount API", "idmapped mounts", "/dev/fuse", "FUSE passthrough", "security modules", "cgroups"),
    *("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"),
)
PROBE = """
import os, sys
from cntr.linux import syscalls
from cntr.cli import reports
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount({kind!r}, {where!r}, {kind!r}, 0, {options!r})
os.makedirs({where!r} + "/proc", exist_ok=True)
syscalls.mount("/proc", {where!r} + "/proc", None, syscalls.MS_BIND | syscalls.MS_REC)
os.chdir({where!r})
syscalls.pivot_root(".", ".")  # chroot(2) would forbid new user namespaces (user_namespaces(7))
syscalls.umount(".", syscalls.MNT_DETACH)
os.chdir("/")
print(reports._probe_idmapped_mounts())
"""


def test_each_feature_has_a_row_and_what_is_missing_a_fix():
    rows = json.loads(cntr("doctor", "--json").stdout)
    for feature in FEATURES:
        (row,) = [row for row in rows if row["feature"].startswith(feature)]
        assert row["state"]
        assert row["fix"] or row["state"] not in ("no", "not visible", "not mounted"), row


@pytest.mark.skipif(not shutil.which("strace"), reason="not installed: strace (apt-get install)")
def test_idmapped_mounts_are_tried_and_not_left(tmp_path):
    """In a mount namespace of its own, since other tests mount things meanwhile (and rmdir(2) unmounts everywhere)."""
    script = 'cat /proc/self/mountinfo >"$0/before" && "$@" && cat /proc/self/mountinfo >"$0/after"'
    words = ["unshare", "-m", "sh", "-c", script, str(tmp_path)]
    words += ["strace", "-f", "-e", "trace=mount_setattr,move_mount", *CNTR, "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "MOUNT_ATTR_IDMAP" in done.stderr or "0x100000" in done.stderr, done.stderr[-2000:]
    assert "move_mount" not in done.stderr
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (set((tmp_path / name).read_text().splitlines()) for name in ("before", "after"))
    assert after - before == set()
    (row,) = [row for row in json.loads(done.stdout) if row["feature"] == "idmapped mounts"]
    assert row["state"] in ("yes", "no")


@pytest.mark.parametrize(("kind", "said"), [("overlay", "not for /: overlay can not be idmapped"), ("tmpfs", "")])
def test_it_is_the_filesystems_answer(tmp_path, kind, said):
    """A mounted overlay does not support them; tmpfs does (Linux 6.3)."""
    try:
        reports._probe_idmapped_mounts()
    except OSError as error:
        pytest.skip(f"no idmapped mounts here: {error}")
    for name in ("lower", "upper", "work", "root"):
        (tmp_path / name).mkdir()
    options = (
        f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work" if kind == "overlay" else ""
    )
    code = PROBE.format(kind=kind, where=f"{tmp_path}/root", options=options)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    assert bool(said) == bool(done.stdout.strip())


def test_without_the_right_it_says_so():
    """In a new user namespace the mount belongs to another one."""
    done = subprocess.run(["unshare", "-Ur", *CNTR, "doctor", "--json"], capture_output=True, text=True, check=False)
    (row,) = [row for row in json.loads(done.stdout) if row["feature"] == "idmapped mounts"]
    assert row["state"] == "no"
    assert "not permitted" in row["fix"]
    assert "5.12" in row["fix"]
