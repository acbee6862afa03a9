"""Builds a box: mmdebstrap → ext4 image → qcow2 → .box, cached by a hash of all inputs.

The kernel boots directly (no bootloader) with a mini initrd made here: see initrd.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from . import initrd, mmdebstrap, paths
from .errors import LabError
from .table import Box

INPUTS = (
    "box/customize.sh",
    "box/pack.sh",
    "box/init",
    "box/Vagrantfile.box",
    "provision/slim-app.c",
    "initrd.py",
)


@dataclasses.dataclass(frozen=True)
class BuiltBox:
    """A box in the cache."""

    box: Box
    directory: Path

    @property
    def disk(self) -> Path:
        """The qcow2 image, which is never booted itself, only overlays of it."""
        return self.directory / "box.img"

    @property
    def kernel(self) -> Path:
        """The uncompressed-on-disk kernel, as QEMU's -kernel takes it."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The mini initrd."""
        return self.directory / "initrd"

    @property
    def kernel_args(self) -> str:
        """The kernel's command line. It is not part of the image, so changing it does not cause a rebuild.

        systemd's own timeouts are long: on a busy host a slow start is no failure.
        """
        return (paths.LAB / "box/cmdline").read_text().strip()

    @property
    def vagrant_box(self) -> Path:
        """The .box archive for `vagrant box add`; made on first demand by `ensure_vagrant_box`."""
        return self.directory / f"{self.box.name}.box"

    @property
    def vagrant_name(self) -> str:
        """The name under which Vagrant knows exactly this build."""
        return f"cntr-lab/{self.directory.name}"


def fingerprint(box: Box) -> str:
    """Twelve hex digits of a hash over the table's row and every file used in the build."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(box), sort_keys=True).encode())
    for name in INPUTS:
        digest.update(name.encode() + b"\0" + (paths.LAB / name).read_bytes())
    digest.update(public_key().read_bytes())
    return digest.hexdigest()[:12]


def private_key() -> Path:
    """The SSH key of this user's lab, made on first use. Boxes hold its public half, and no well-known key."""
    key = paths.cache_dir() / "id_ed25519"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        if not shutil.which("ssh-keygen"):
            raise LabError(
                "making the lab's key needs ssh-keygen, which is not installed", "apt-get install openssh-client"
            )
        with tempfile.TemporaryDirectory(dir=key.parent) as work:
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cntr-lab", "-f", f"{work}/key"])
            Path(work, "key.pub").rename(key.with_suffix(".pub"))
            Path(work, "key").rename(key)
    return key


def public_key() -> Path:
    """The public half of `private_key`."""
    return private_key().with_suffix(".pub")


def location(box: Box) -> Path:
    """The cache directory for this build of the box."""
    return paths.cache_dir() / "boxes" / f"{box.name}-{fingerprint(box)}"


def cached(box: Box) -> BuiltBox | None:
    """The box, if it was built from the same inputs."""
    directory = location(box)
    return BuiltBox(box, directory) if (directory / "done").exists() else None


def ensure(box: Box, mirror: str | None = None) -> BuiltBox:
    """The box, built now if the cache does not hold it.

    Raises:
        LabError: a tool is missing, or a step of the build failed.
    """
    found = cached(box)
    if found:
        return found
    directory = location(box)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with only_one_builder(directory):
        return cached(box) or _build(box, directory, mirror)


def _build(box: Box, directory: Path, mirror: str | None) -> BuiltBox:
    for tool in ("mmdebstrap", "mke2fs", "qemu-img"):
        if not shutil.which(tool):
            raise LabError(
                f"building box {box.name} needs {tool}, which is not installed", "python -m lab doctor says how"
            )
    started = time.monotonic()
    print(
        f"lab: box {box.name} is not cached ({directory.name}); building it from {box.suite}, which takes some minutes",
        flush=True,
    )
    # /var/tmp has room for the raw image; 0777: root of mmdebstrap's user namespace is another uid here.
    with tempfile.TemporaryDirectory(prefix="cntr-lab-", dir="/var/tmp") as work:
        os.chmod(work, 0o777)
        out = Path(work, "out")
        out.mkdir()
        os.chmod(out, 0o777)
        _bootstrap(box, out, mirror)
        staging = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
        try:
            _say(started, "packing the disk")
            _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(out / "box.raw"), str(staging / "box.img")])
            shutil.copy(out / "vmlinuz", staging / "vmlinuz")
            (staging / "initrd").write_bytes(initrd.build(out / "busybox", out / "modules", paths.LAB / "box/init"))
            about = {"kernel": (out / "release").read_text().strip(), "seconds": round(time.monotonic() - started, 1)}
            (staging / "about.json").write_text(json.dumps(about, indent=1) + "\n")
            (staging / "done").write_text("")
            staging.rename(directory)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    _forget_older(box, directory)
    _say(started, f"box {box.name} ready, {(directory / 'box.img').stat().st_size >> 20} MiB")
    return BuiltBox(box, directory)


def _bootstrap(box: Box, out: Path, mirror: str | None) -> None:
    """Run mmdebstrap; its own output goes to a log, progress to the terminal."""
    log = location(box).parent / f"{box.name}.log"
    packages = [box.kernel, *box.packages, *box.peers]
    options = [
        "--variant=minbase",
        "--format=null",
        "--skip=check/empty",
        f"--include={','.join(packages)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io",
        # No initramfs, no bootloader: the lab has its own initrd. Debian's hook scripts would take a minute.
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools" "$1/etc/kernel" && echo do_initrd=no >"$1/etc/kernel-img.conf"',
        '--essential-hook=printf "#!/bin/sh\\nexit 101\\n" >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"',
        '--customize-hook=rm -f "$1/usr/sbin/policy-rc.d"',
        f'--customize-hook=sh {paths.LAB}/box/customize.sh "$1" "$(cat {public_key()})"',
        f'--customize-hook=sh {paths.LAB}/box/pack.sh "$1" {out} {box.disk_gib}',
    ]
    command = mmdebstrap.command(options, box.suite, "/dev/null", mirror)
    for step in mmdebstrap.followed(command, log, out.parent):
        print(f"lab:   {step}", flush=True)
    if not (out / "done").exists():
        words = mmdebstrap.last_words(log)
        raise LabError(f"building box {box.name} failed; mmdebstrap's last words:\n{words}", f"the whole log: {log}")


def ensure_vagrant_box(built: BuiltBox) -> Path:
    """The .box archive: metadata, the direct-boot settings, kernel, initrd, disk."""
    if built.vagrant_box.exists():
        return built.vagrant_box
    print(f"lab: packing {built.vagrant_box.name}", flush=True)
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": built.box.disk_gib}
    partial = built.vagrant_box.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as work, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        text = Path(work, "metadata.json")
        text.write_text(json.dumps(metadata))
        archive.add(text, "metadata.json")
        archive.add(paths.LAB / "box/Vagrantfile.box", "Vagrantfile")
        archive.add(paths.LAB / "box/cmdline", "cmdline")
        for name in ("vmlinuz", "initrd", "box.img"):
            archive.add(built.directory / name, name)
    partial.rename(built.vagrant_box)
    return built.vagrant_box


def _forget_older(box: Box, keep: Path) -> None:
    """Remove builds of this box that are no longer used: their inputs have changed, and no machine runs on them."""
    used = "".join(p.read_text(errors="replace") for p in paths.runs_dir().glob("*/state.json"))
    for old in keep.parent.glob(f"{box.name}-*"):
        if old != keep and old.is_dir() and (old / "done").exists() and str(old) not in used:
            shutil.rmtree(old, ignore_errors=True)


class only_one_builder:
    """A lock: if two labs need the same file of the cache, the second one waits and then finds it."""

    def __init__(self, directory: Path, what: str = "this box") -> None:
        self._what = what
        self._path = directory.with_name(directory.name + ".lock")

    def __enter__(self) -> None:
        import fcntl

        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lab: another run is making {self._what}; waiting for it", flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()[-400:]}")


def _say(started: float, text: str) -> None:
    print(f"lab: {time.monotonic() - started:6.0f} s  {text}", flush=True, file=sys.stdout)
