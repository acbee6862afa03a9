"""``mount.fuse.cntrfs``: run by mount(8) for ``mount -t fuse.cntrfs source:/a /b -o OPTS`` (and from fstab).

The device is shown exactly as given. Set-id bits and devices take effect only with ``allow_suid`` and ``allow_dev`` in
OPTS (mount(8) does not pass ``suid`` and ``dev``), and if the source's own mount allows them.

Returns when the filesystem answers; a background process serves it.
"""

from __future__ import annotations

import logging
import os
import sys

from cntr.cntrfs import mounting
from cntr.cntrfs.mount_words import mount_flags
from cntr.cntrfs.options import MOUNT_FLAGS, Options, parse
from cntr.errors import CntrError, UsageError, complain
from cntr.linux import procfs, syscalls

PREFIX = "source:"
_MS_REMOUNT = 32


def main(arguments: list[str] | None = None) -> int:
    """The entry point; returns mount(8)'s exit status: 0, 1 for incorrect usage, 32 if the mount failed."""
    logging.basicConfig(format="cntrfs: %(levelname)s: %(message)s", level=logging.INFO)
    try:
        return _mount(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        status = 1
        problem: CntrError = error
    except CntrError as error:
        status = 32
        problem = error
    complain(f"mount.{mounting.FSTYPE}: {problem.message}\n" + (f"hint: {problem.hint}\n" if problem.hint else ""))
    return status


def _mount(arguments: list[str]) -> int:
    device, mountpoint, words, fake = _parse(arguments)
    if "remount" in words:
        _remount(mountpoint, [word for word in words if word in MOUNT_FLAGS or word in ("ro", "rw")])
        return 0
    options = Options(fsname=device)
    flags = [word for word in words if word in ("ro", "rw")]  # flags of the mount, which a remount can change
    binding = None
    for word in words:
        if word.startswith("binding="):
            binding = word.removeprefix("binding=")
            if binding not in mounting.BINDINGS:
                raise UsageError(f"unknown binding: {binding}", f"one of: {', '.join(mounting.BINDINGS)}")
        elif word not in flags:
            parse(word, options)
    options.mount_flags[:0] = flags
    if fake:
        return 0
    return mounting.run(device.removeprefix(PREFIX), mountpoint, options, binding=binding, foreground=False)


def _parse(arguments: list[str]) -> tuple[str, str, list[str], bool]:
    """Parse mount(8)'s calling convention for helpers: (device, mountpoint, option words, dry run)."""
    places: list[str] = []
    words: list[str] = []
    fake = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{argument} wants a value", f"usage: mount.{mounting.FSTYPE} DEV DIR [-o OPTS]")
            if argument == "-o":
                words += filter(None, value.split(","))
        elif argument.startswith("-") and not argument.strip("-sfnvrw"):
            fake = fake or "f" in argument
            words += [word for letter, word in (("r", "ro"), ("w", "rw")) if letter in argument]
        else:
            places.append(argument)
    if len(places) != 2:
        raise UsageError("wanted: a source and a mountpoint", f"usage: mount.{mounting.FSTYPE} DEV DIR [-o OPTS]")
    # Whatever the order was, mount(8) puts its own words first: what forbids counts.
    words = [word for word in words if not (word in ("allow_suid", "allow_dev") and f"no{word[6:]}" in words)]
    return places[0], places[1], words, fake


def _remount(mountpoint: str, words: list[str]) -> None:
    now = [mount.options for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
           if mount.mount_point == os.path.realpath(mountpoint)]  # fmt: skip
    kept = [word for word in ("nosuid", "nodev", "noexec") if not now or word in now[-1]]
    flags = mount_flags([*kept, *words])  # options that are not given stay unchanged
    try:
        syscalls.mount(None, mountpoint, None, _MS_REMOUNT | flags)
    except OSError as error:
        raise CntrError(f"cannot remount {mountpoint}: {os.strerror(error.errno or 0)}", "is it mounted?") from None


if __name__ == "__main__":
    sys.exit(main())
