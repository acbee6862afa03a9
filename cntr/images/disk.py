"""A disk image (NAME.raw) as a root: finds its root file system, and mounts it read-only.

The kernel parses that file system with all its rights, so an image counts only if nobody but root can have written it,
and is mounted only if the user names it as ``raw:NAME``. Partitions are found as by systemd (Discoverable Partitions
Specification), from the table only.
"""

from __future__ import annotations

import binascii
import os
import stat

from cntr.engines import store, trust
from cntr.errors import printable
from cntr.images import ImageError
from cntr.linux import loop, syscalls
from cntr.linux.numbers import UNAME

SECTOR = 512
TABLE = 1 << 20  # most bytes of a partition table
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
# uname(2)'s machine → partition types of its root, /usr, and the root's verity data
ROOTS = {
    "x86_64": (
        *("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "8484680c-9521-48c6-9c11-b0720656f69e"),
        "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    ),
    "aarch64": (
        *("b921b045-1df0-41c3-af44-4c6f280d3fae", "b0e01050-ee5f-4390-949a-9101b17104e9"),
        "df3300ce-d69f-4c92-978c-9bfb0f38d820",
    ),
    "riscv64": (
        *("72ec70a6-cf74-40e6-bd49-4bda08e8f224", "beaec34b-8442-439b-a40b-984381ed097d"),
        "b6ed5582-440b-4209-b8da-5ff7c419ea3d",
    ),
}
NO_AUTO = 1 << 63  # attribute of a partition that is not to be found by its type
# (offset, magic, type, options): no journal is replayed, and an image cannot make an error stop this machine
FILE_SYSTEMS = (
    (1024 + 56, b"\x53\xef", "ext4", ("noload", "errors=continue")),
    (0, b"XFSB", "xfs", ("norecovery", "nouuid")),
    (65536 + 64, b"_BHRfS_M", "btrfs", ("rescue=nologreplay",)),
    (0, b"hsqs", "squashfs", ()),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs", ()),
)
ENCRYPTED = (
    (b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (b"SKUL\xba\xbe", "encrypted (LUKS)"),
    (b"verity\0\0", "verity data"),
)
DISSECT = "`systemd-dissect --mount FILE DIR`, then dir:DIR"


class Disk:
    """path: of the file; ``fd``: open for reading, so the file that was examined is the one that is mounted; offset,
    size: of its root in bytes.
    """

    def __init__(self, path: str) -> None:
        """Find the root. Raises ImageError."""
        self.path, self.what = path, f"disk image {printable(path)}"
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise ImageError(f"{self.what}: {error.strerror}", "") from None
        try:
            info = os.fstat(self.fd)
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(f"{self.what}: not a regular file", "a block device is mounted, then dir:DIR")
            whose = trust.merge(trust.owner_or_anybody(path), trust.changer(info, f"/proc/self/fd/{self.fd}"))
            if whose:
                raise ImageError(f"{self.what}: {store.written_by(whose)}", "the kernel reads what only root wrote")
            self.offset, self.size = 0, info.st_size
            if self._read(SECTOR, 8) == b"EFI PART":
                self.offset, self.size = self._root()
            self.fstype, self.options = self._file_system()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def mount(self, *, programs: bool = False) -> int:
        """A detached mount of the root: read-only, without devices and set-id bits, and without
        programs unless PROGRAMS. Reads only the file. Raises OSError.
        """
        device = loop.attach(self.fd, self.offset, self.size)
        try:
            options: list[tuple[str, str | None]] = [("source", f"/proc/self/fd/{device}"), ("ro", None)]
            for option in self.options:
                key, equals, value = option.partition("=")
                options.append((key, value if equals else None))
            attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
            attributes |= 0 if programs else syscalls.MOUNT_ATTR_NOEXEC
            return syscalls.new_filesystem(self.fstype, options, attributes)
        finally:
            os.close(device)

    def _read(self, offset: int, size: int) -> bytes:
        """Read from the root file system, once its place is known."""
        return os.pread(self.fd, size, self.offset + offset)

    def _root(self) -> tuple[int, int]:
        """(offset, size) of the root partition of a GPT (UEFI specification, 5.3)."""
        header = self._read(SECTOR, SECTOR)
        length, check = _number(header, 12, 4), _number(header, 16, 4)
        count, each = _number(header, 80, 4), _number(header, 84, 4)
        if not 92 <= length <= SECTOR or not 128 <= each <= 4096 or count * each > TABLE:
            raise self._bad("its partition table is none")
        if binascii.crc32(header[:16] + bytes(4) + header[20:length]) != check:
            raise self._bad("its partition table has a wrong checksum")
        table = self._read(_number(header, 72, 8) * SECTOR, count * each) if _number(header, 72, 8) < 1 << 40 else b""
        if len(table) != count * each or binascii.crc32(table) != _number(header, 88, 4):
            raise self._bad("its partitions have a wrong checksum")
        rows = [table[at : at + each] for at in range(0, len(table), each)]
        of_type: dict[str, list[bytes]] = {}
        for row in rows:
            if not _number(row, 48, 8) & NO_AUTO:
                of_type.setdefault(_uuid(row[:16]), []).append(row)
        root, usr, verity = ROOTS.get(UNAME, ("", "", ""))
        if of_type.get(verity):
            raise self._bad("its root has verity data, which nothing here would check")
        if of_type.get(usr):
            raise self._bad("its /usr is a partition of its own")
        found = of_type.get(root) or of_type.get(LINUX) or []
        if len(found) != 1:
            raise self._bad(f"it has {len(found) or 'no'} partitions that could be the root of {UNAME}")
        first, last = _number(found[0], 32, 8), _number(found[0], 40, 8)
        if not 0 < first <= last or (last + 1) * SECTOR > self.size:
            raise self._bad("its root partition reaches behind its end")
        return first * SECTOR, (last + 1 - first) * SECTOR

    def _file_system(self) -> tuple[str, tuple[str, ...]]:
        head = self._read(0, 8)
        for magic, name in ENCRYPTED:
            if head.startswith(magic):
                raise self._bad(f"its root is {name}")
        for offset, magic, fstype, options in FILE_SYSTEMS:
            if self._read(offset, len(magic)) == magic:
                return fstype, options
        raise self._bad("its root is no ext4, XFS, btrfs, squashfs or erofs, and it has no GPT")

    def _bad(self, why: str) -> ImageError:
        return ImageError(f"{self.what}: {why}", DISSECT.replace("FILE", printable(self.path)))


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _uuid(data: bytes) -> str:
    """A partition type's UUID as text; its first three groups are little-endian."""
    text = (data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:16]).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
