"""A container whose root directory was deleted or unmounted while its processes run."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

from cntr.linux import syscalls
from tests.cli.run import cntr, complaint

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("busybox"), reason="needs root and busybox-static"
)


def make(root: pathlib.Path) -> pathlib.Path:
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/sleep")
    return root


def start(root: pathlib.Path) -> subprocess.Popen[bytes]:
    """A process chrooted into ROOT, with a mount namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "unchanged", "chroot", str(root), "/bin/sleep", "300"]
    )
    while pathlib.Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
        os.sched_yield()
    return process


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_it_was_deleted(tmp_path, transport):
    with start(make(tmp_path / "root")) as process:
        shutil.rmtree(tmp_path / "root")
        for words in (
            ["attach", "--transport", transport, f"pid:{process.pid}"],
            ["exec", f"pid:{process.pid}", "/bin/sleep"],
        ):
            message, hint = complaint(cntr(*words))
            assert message == f"pid:{process.pid}: its root directory is gone: it has been deleted"
            assert f"/proc/{process.pid}/fd" in hint
        process.kill()


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_it_was_unmounted(tmp_path, transport):
    place = tmp_path / "root"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0)
    try:
        syscalls.mount(None, str(place), None, syscalls.MS_PRIVATE)
        with start(make(place)) as process:
            subprocess.run(["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "umount", "-l", str(place)], check=True)
            done = cntr("attach", "--transport", transport, f"pid:{process.pid}", "--", "true")
            assert done.returncode == 125
            assert "its root directory is gone: it has been unmounted" in done.stderr
            assert done.stderr.count("hint:") == 1
            process.kill()
    finally:
        syscalls.umount(str(place), syscalls.MNT_DETACH)
