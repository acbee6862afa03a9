"""The tools view: what a session sees of the tools' side, without anything that only some user there may read.

Each real file system of the tools' tree is cloned, read-only, without set-id bits and devices, and idmapped so that every file
belongs to nobody (mount_setattr(2), MOUNT_ATTR_IDMAP): capabilities over files count for owners that a user namespace maps
(capabilities(7)), so only the permissions for others are left, to uid 0 as well. Where a file system can't be idmapped, an overlay of
it does the same (cntr/linux/nobodys_overlay.py); where there can be none, what others may not read is found by looking, and covered.
/proc, /sys, /dev, /run, /tmp, /home and the like are not part of it.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.attach import places, steps
from cntr.attach.tools import Tools
from cntr.errors import printable
from cntr.linux import attributes, procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Overlay = Callable[[int, int], int]

# What a session has of its own, or has from the container (docs/security.md).
HIDDEN = ("dev", "home", "proc", "root", "run", "sys", "tmp", "var/tmp")
# File systems that hold installed programs. Not FUSE: a mount whose server has died or hangs would be waited for.
SHOWN = frozenset(
    "9p aufs bcachefs btrfs ceph cifs erofs exfat ext2 ext3 ext4 f2fs iso9660 jfs nfs nfs4 ntfs3 overlay reiserfs smb3 squashfs "
    "tmpfs udf vfat virtiofs xfs zfs".split()
)
SAFE = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
LEFT_OUT = "left out"
LOOKED_AT = 1_000_000  # entries of a file system that can't be idmapped, at most
MASKED = 10_000
OWNER_DEPTH = 3  # how deep below / an owner without root has what is theirs alone looked for


class Part:
    """One mount of the view. how: ``idmapped``, ``overlaid``, ``masked`` or LEFT_OUT; masks: [(path below it, is_dir)] to be covered."""

    __slots__ = ("fstype", "how", "masks", "path", "tree_fd")

    def __init__(self, path: str, fstype: str, tree_fd: int) -> None:
        """tree_fd: a detached clone."""
        self.path, self.fstype, self.tree_fd, self.how = path, fstype, tree_fd, ""
        self.masks: list[tuple[str, bool]] = []

    def protect(self, nobody_fd: int, mounted: int, overlay: Overlay | None) -> None:
        """Read-only, and nobody's or to be masked. mounted: a fd of the directory that it is a clone of, -1 for none. Raises OSError."""
        try:
            if nobody_fd < 0:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            attributes.add(self.tree_fd, SAFE, nobody_fd)
            self.how = "idmapped"
        except OSError as error:
            # EINVAL: the file system has no idmapped mounts; EPERM: it belongs to a user namespace, or is idmapped already.
            # ENOSYS: nothing can be, before Linux 5.12.
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            can = mounted >= 0 and error.errno != errno.ENOSYS and _is_reachable(self.path)
            if overlay and can and self._overlay(nobody_fd, mounted, overlay):
                return
            attributes.add(self.tree_fd, SAFE)
            self.how = "masked"

    def _overlay(self, nobody_fd: int, mounted: int, make: Overlay) -> bool:
        """Have an overlay of it in its place that looks with nobody's rights; False where there can be none."""
        if nobody_fd < 0 or not stat.S_ISDIR(os.fstat(mounted).st_mode):
            return False
        clone = syscalls.open_tree(mounted, "", places.CLONE)
        try:
            overlay = make(clone, nobody_fd)
        except OSError:  # before Linux 5.11, without overlayfs, on top of two others already
            return False
        finally:
            os.close(clone)
        attributes.add(overlay, SAFE)
        os.close(self.tree_fd)
        self.tree_fd, self.how = overlay, "overlaid"
        return True

    def look(self) -> None:
        """Find what others may not read. Raises OSError (EFBIG: there is too much to look at)."""
        mode = os.fstat(self.tree_fd).st_mode
        if not stat.S_ISDIR(mode):  # a file mounted on a file, as engines do with /etc/hosts
            self.how = self.how if stat.S_ISREG(mode) and mode & 0o4 else LEFT_OUT
            return
        left, pending = LOOKED_AT, [""]
        hidden = HIDDEN if self.path == "/" else ()
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        while pending:
            directory = pending.pop()
            try:
                fd = syscalls.openat2(self.tree_fd, directory or ".", os.O_RDONLY | os.O_DIRECTORY, resolve)
            except OSError as error:
                if directory and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue  # it has gone since
                raise
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        left -= 1
                        if left < 0 or len(self.masks) > MASKED:
                            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), f"{self.path} ({self.fstype})")
                        if entry.is_symlink():
                            continue
                        try:
                            mode = entry.stat(follow_symlinks=False).st_mode
                        except OSError:
                            continue
                        kind = stat.S_IFMT(mode)
                        if kind == stat.S_IFREG and mode & 0o4:  # nearly all are
                            continue
                        path = f"{directory}/{entry.name}" if directory else entry.name
                        if path in hidden:
                            continue
                        if kind == stat.S_IFDIR and mode & 0o5 == 0o5:
                            pending.append(path)
                        else:  # a socket, FIFO or device leads to whoever serves it
                            self.masks.append((path, kind == stat.S_IFDIR))
            finally:
                os.close(fd)


def collect(proc_fd: int, nobody_fd: int, overlay: Overlay | None) -> list[Part]:
    """The parts of the view of the calling process's root, / first. proc_fd: a /proc of its pid namespace. Raises OSError."""
    mounts = procfs.mountinfo(procfs.read("self/mountinfo", proc_fd))
    root = next((mount.fstype for mount in reversed(mounts) if mount.mount_point == "/"), "?")
    parts = _closed_root(root) or [
        Part("/", root, syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE))
    ]
    resolve = syscalls.RESOLVE_NO_SYMLINKS
    for number, part in enumerate(parts):
        closed = number == 0 and len(parts) > 1  # a tmpfs of our own
        mounted = -1 if closed else syscalls.openat2(syscalls.AT_FDCWD, part.path, os.O_PATH, resolve)
        try:
            part.protect(nobody_fd, mounted, overlay)
        finally:
            if mounted >= 0:
                os.close(mounted)
    seen = {part.path for part in parts}
    for mount in mounts:
        path = mount.mount_point
        if not is_shown(mount) or path in seen:
            continue
        seen.add(path)
        try:
            fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)
        except OSError:
            continue  # below another mount, or it has gone
        try:
            part = Part(path, mount.fstype, syscalls.open_tree(fd, "", places.CLONE))
            part.protect(nobody_fd, fd, overlay)
        finally:
            os.close(fd)
        parts.append(part)
    for part in parts:
        if part.how != "masked":
            continue
        try:
            if _is_reachable(part.path):
                part.look()
            else:
                part.how = LEFT_OUT
        except OSError as error:
            if error.errno != errno.EFBIG or part.path == "/":
                raise
            part.how, part.masks = LEFT_OUT, []  # whoever may write there makes as many files as they like
    return parts


def _is_reachable(path: str) -> bool:
    """Whether others get to PATH: no directory above it is closed to them, as those are that hold other containers' trees."""
    above = path.split("/")[1:-1]
    return all(os.stat(f"/{'/'.join(above[:count])}").st_mode & 1 for count in range(1, len(above) + 1))


def _closed_root(fstype: str) -> list[Part]:
    """For a root directory that is closed to others, as mktemp(1) makes them: a tmpfs in its place, and a part for each entry.

    Nobody could pass such a directory, and it is the one that the user has named.
    """
    if os.stat("/").st_mode & 0o5 == 0o5:
        return []
    tmpfs = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "1m"})
    parts = [Part("/", "tmpfs", tmpfs)]
    for name in os.listdir("/"):
        mode = os.lstat(f"/{name}").st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(f"/{name}"), name, dir_fd=tmpfs)
        elif stat.S_ISDIR(mode):
            os.mkdir(name, 0o755, dir_fd=tmpfs)
            tree = syscalls.open_tree(syscalls.AT_FDCWD, f"/{name}", syscalls.OPEN_TREE_CLONE)
            parts.append(Part(f"/{name}", fstype, tree))
    return parts


def is_shown(mount: procfs.Mount) -> bool:
    """Whether a mount of the tools' side is part of the view."""
    path = mount.mount_point
    hidden = any(path == f"/{name}" or path.startswith(f"/{name}/") for name in HIDDEN)
    return mount.fstype in SHOWN and not hidden and path != "/"


class View:
    """Makes the tools view the root of the calling process's mount namespace, a private copy of the tools' own.

    nobody_fd: a user namespace that maps one id no file has (namespaces.nobody), -1 where there can be none; as_owner: for the owner
    of a rootless container, who is not root; overlay: nobodys_overlay.make, None where it is not loaded.
    """

    __slots__ = ("as_owner", "nobody_fd", "notes", "overlay", "proc_fd")

    def __init__(self, nobody_fd: int, proc_fd: int, overlay: Overlay | None, *, as_owner: bool) -> None:
        self.nobody_fd, self.proc_fd, self.overlay, self.as_owner = nobody_fd, proc_fd, overlay, as_owner
        self.notes: list[str] = []

    def assemble(self, progress: steps.Progress) -> None:
        """Raises OSError; ``progress.now`` says where."""
        progress.now = steps.VIEW
        if self.as_owner:
            self._owners_view(progress)
            return
        try:
            parts = collect(self.proc_fd, self.nobody_fd, self.overlay)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._whole_view(progress)
            return
        make_root(parts[0].tree_fd, progress)
        progress.now = steps.VIEW
        for part in parts[1:]:
            try:
                if part.how == LEFT_OUT:
                    continue
                fd = places.open_inside(part.path, os.O_NOFOLLOW)
                syscalls.move_mount(part.tree_fd, fd, "")
                os.close(fd)
            except OSError:
                part.how = LEFT_OUT  # below a directory that is closed to others: nobody could get there
            finally:
                os.close(part.tree_fd)
        self.notes += [f"tools view: {printable(part.path)} ({part.fstype}): {part.how}" for part in parts]
        if not attributes.are_known():
            self.notes.append(
                "tools view: this kernel has no mount_setattr (Linux 5.12): nothing is idmapped, what only some may read is covered"
            )
        progress.now = steps.MASKS
        masks = [(f"{part.path.rstrip('/')}/{path}", is_dir) for part in parts for path, is_dir in part.masks]
        self._cover(masks)

    def _whole_view(self, progress: steps.Progress) -> None:
        """Of a container with a user namespace: its mounts are locked together (mount_namespaces(7)), none can be cloned by itself."""
        attributes.add_everywhere(SAFE, self.proc_fd)
        progress.now = steps.MASKS
        whole = Part("/", "mounts locked together", os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        whole.how = "masked"
        whole.look()
        os.close(whole.tree_fd)
        self._cover([(f"/{path}", is_dir) for path, is_dir in whole.masks])
        self.notes.append(f"tools view: / ({whole.fstype}): {whole.how}")

    def _cover(self, masks: list[tuple[str, bool]]) -> None:
        """Mount nothing over each of MASKS. Raises OSError."""
        if not masks:
            return
        nothing = syscalls.new_filesystem("tmpfs", {"mode": "000", "size": "4k"}, SAFE & ~syscalls.MOUNT_ATTR_RDONLY)
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        try:
            os.mkdir("directory", 0, dir_fd=nothing)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=nothing))
            # A clone can be taken of what is mounted in this namespace only; this is the last mount that is unmounted.
            place = places.open_inside("/")
            syscalls.move_mount(nothing, place, "")
            os.close(place)
            # A clone has its mount's attributes; each by itself would take a process, where there is no mount_setattr(2).
            by_itself = attributes.are_known()
            if not by_itself:
                attributes.add_here(nothing, SAFE)
            for path, is_dir in masks:
                try:
                    fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, resolve)
                except FileNotFoundError:
                    continue  # it has gone since
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.ELOOP, errno.ENOTDIR):
                        continue  # out of everybody's reach; or another file by now, below a directory of root's
                    raise
                try:
                    tree = syscalls.open_tree(nothing, "directory" if is_dir else "file", syscalls.OPEN_TREE_CLONE)
                    if by_itself:  # nobody's, where that can be had: root with its capabilities opens what is its own
                        attributes.add(tree, SAFE, self.nobody_fd)
                    syscalls.move_mount(tree, fd, "")
                    os.close(tree)
                finally:
                    os.close(fd)
            os.fchdir(nothing)
            syscalls.umount(".", syscalls.MNT_DETACH)
            os.chdir("/")
        finally:
            os.close(nothing)

    def _owners_view(self, progress: steps.Progress) -> None:
        """Without root nothing can be idmapped and no mount left out: read-only, and what is the owner's alone is covered."""
        attributes.add_everywhere(SAFE, self.proc_fd)
        progress.now = steps.MASKS
        found: list[tuple[str, bool]] = []
        pending = [("/", 0)]
        while pending:
            directory, depth = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        path = f"{directory.rstrip('/')}/{entry.name}"
                        if path.lstrip("/") in HIDDEN or entry.is_symlink():
                            continue
                        status = entry.stat(follow_symlinks=False)
                        is_dir = stat.S_ISDIR(status.st_mode)
                        if status.st_uid == os.getuid() and status.st_mode & (5 if is_dir else 4) != (
                            5 if is_dir else 4
                        ):
                            found.append((path, is_dir))
                        elif is_dir and depth < OWNER_DEPTH:
                            pending.append((path, depth + 1))
            except OSError:
                continue
        self._cover(found)
        self.notes.append("tools view: read-only, without what is its owner's alone (no root: nothing can be idmapped)")


def namespaces_used_up(number: int) -> bool:
    """Whether a user namespace could not be made (errno NUMBER) since root has all it may have: so count those of any container's uid 0.

    A machine that allows none at all (/proc/sys/user, namespaces(7)) has none to use up.
    """
    try:
        return number == errno.ENOSPC and int(procfs.read("/proc/sys/user/max_user_namespaces")) > 0
    except OSError:
        return False


def enter_tools(tools: Tools, own_mnt_fd: int, progress: steps.Progress) -> None:
    """Enter a private copy of the tools' mount namespace, with the tools' tree as its root. Raises OSError."""
    progress.now = steps.TOOLS_MOUNTS
    syscalls.setns(tools.mnt_fd if tools.mnt_fd >= 0 else own_mnt_fd, syscalls.CLONE_NEWNS)
    is_namespace_root = os.path.samestat(os.fstat(tools.root_fd), os.stat("/"))
    progress.now = steps.COPY_TOOLS
    tree_fd = -1 if is_namespace_root else syscalls.open_tree(tools.root_fd, "", places.CLONE_ALL)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # Before anything is mounted: a shared mount would carry it into the namespace we came from.
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    if tree_fd >= 0:
        make_root(tree_fd, progress)


def make_root(tree_fd: int, progress: steps.Progress) -> None:
    """Make a detached tree the root; nothing of the old one stays mounted, to be found by a privileged session. Raises OSError."""
    progress.now = steps.ROOT
    syscalls.move_mount(tree_fd, syscalls.AT_FDCWD, "/")
    os.fchdir(tree_fd)
    # A copy of a shared mount is shared; pivot_root(2) wants none.
    syscalls.mount(None, ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.close(tree_fd)
    os.chdir("/")
