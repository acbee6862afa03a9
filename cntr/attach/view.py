"""The tools view: what a session sees of the tools' side, without anything that only certain users may read.

Each real file system of the tools' tree is cloned, read-only, without set-id bits and devices, and idmapped so that
every file belongs to nobody (mount_setattr(2), MOUNT_ATTR_IDMAP). Capabilities over files apply only to owners that
the user namespace maps (capabilities(7)). So only the permissions for others count, even for uid 0. Where a file
system cannot be idmapped, an overlay does the same (cntr/linux/nobodys_overlay.py). Where there can be no overlay
either, files that others may not read are searched for and covered. /proc, /sys, /dev, /run, /tmp, /home and the
like are not part of the view.
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

# Directories of which a session has its own, or the container's (docs/security.md).
HIDDEN = ("dev", "home", "proc", "root", "run", "sys", "tmp", "var/tmp")
# File systems that hold installed programs. FUSE is not among them: access to a dead or hung server would block.
SHOWN = frozenset(
    "9p aufs bcachefs btrfs ceph cifs erofs exfat ext2 ext3 ext4 f2fs iso9660 jfs nfs nfs4 ntfs3 overlay reiserfs smb3 squashfs "
    "tmpfs udf vfat virtiofs xfs zfs".split()
)
SAFE = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
LEFT_OUT = "left out"
LOOKED_AT = 1_000_000  # most entries searched in a file system that cannot be idmapped
MASKED = 10_000
OWNER_DEPTH = 3  # how many levels below / are searched for files of an owner without root


class Part:
    """One mount of the view. how: ``idmapped``, ``overlaid``, ``masked`` or LEFT_OUT; masks: [(path below it,
    is_dir)] to cover.
    """

    __slots__ = ("fstype", "how", "masks", "path", "tree_fd")

    def __init__(self, path: str, fstype: str, tree_fd: int) -> None:
        """tree_fd: a detached clone."""
        self.path, self.fstype, self.tree_fd, self.how = path, fstype, tree_fd, ""
        self.masks: list[tuple[str, bool]] = []

    def protect(self, nobody_fd: int, mounted: int, overlay: Overlay | None) -> None:
        """Make it read-only, and idmapped or overlaid if possible. mounted: an fd of the directory it was cloned
        from, -1 for none.

        Raises OSError.
        """
        try:
            if nobody_fd < 0:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            attributes.add(self.tree_fd, SAFE, nobody_fd)
            self.how = "idmapped"
        except OSError as error:
            # EINVAL: the file system does not support idmapped mounts. EPERM: it belongs to a user namespace, or is
            # idmapped already. ENOSYS: before Linux 5.12 nothing can be idmapped.
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            can = mounted >= 0 and error.errno != errno.ENOSYS and _is_reachable(self.path)
            if overlay and can and self._overlay(nobody_fd, mounted, overlay):
                return
            attributes.add(self.tree_fd, SAFE)
            self.how = "masked"

    def _overlay(self, nobody_fd: int, mounted: int, make: Overlay) -> bool:
        """Replace it by an overlay that reads it with nobody's rights; False if there can be none."""
        if nobody_fd < 0 or not stat.S_ISDIR(os.fstat(mounted).st_mode):
            return False
        clone = syscalls.open_tree(mounted, "", places.CLONE)
        try:
            overlay = make(clone, nobody_fd)
        except OSError:  # before Linux 5.11, without overlayfs, or on two nested overlays
            return False
        finally:
            os.close(clone)
        attributes.add(overlay, SAFE)
        os.close(self.tree_fd)
        self.tree_fd, self.how = overlay, "overlaid"
        return True

    def look(self) -> None:
        """Find what others may not read. Raises OSError (EFBIG: too many entries)."""
        mode = os.fstat(self.tree_fd).st_mode
        if not stat.S_ISDIR(mode):  # a file mounted on a file, as engines mount /etc/hosts
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
                        if kind == stat.S_IFREG and mode & 0o4:  # nearly all files
                            continue
                        path = f"{directory}/{entry.name}" if directory else entry.name
                        if path in hidden:
                            continue
                        if kind == stat.S_IFDIR and mode & 0o5 == 0o5:
                            pending.append(path)
                        else:  # a socket, FIFO or device leads to the process behind it
                            self.masks.append((path, kind == stat.S_IFDIR))
            finally:
                os.close(fd)


def collect(proc_fd: int, nobody_fd: int, overlay: Overlay | None) -> list[Part]:
    """The parts of the view of the calling process's root, / first. proc_fd: a /proc of its pid namespace. Raises
    OSError.
    """
    mounts = procfs.mountinfo(procfs.read("self/mountinfo", proc_fd))
    root = next((mount.fstype for mount in reversed(mounts) if mount.mount_point == "/"), "?")
    parts = _closed_root(root) or [
        Part("/", root, syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE))
    ]
    resolve = syscalls.RESOLVE_NO_SYMLINKS
    for number, part in enumerate(parts):
        closed = number == 0 and len(parts) > 1  # a tmpfs of ours
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
            continue  # hidden by another mount, or gone
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
            part.how, part.masks = LEFT_OUT, []  # a user who may write there could make any number of files
    return parts


def _is_reachable(path: str) -> bool:
    """Whether others can reach PATH: every directory above it is open to them. Those above other containers' trees
    are not.
    """
    above = path.split("/")[1:-1]
    return all(os.stat(f"/{'/'.join(above[:count])}").st_mode & 1 for count in range(1, len(above) + 1))


def _closed_root(fstype: str) -> list[Part]:
    """For a root directory closed to others, as mktemp(1) makes them: a tmpfs in its place, and a part for each
    entry.

    Nobody could pass such a directory, but the user has named it.
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
    """Makes the tools view the root of the calling process's mount namespace, a private copy of the tools'.

    nobody_fd: a user namespace that maps one id that no file has (namespaces.nobody), -1 if none can be made;
    as_owner: the caller owns a rootless container and is not root; overlay: nobodys_overlay.make, None if it is not
    loaded.
    """

    __slots__ = ("as_owner", "nobody_fd", "notes", "overlay", "proc_fd")

    def __init__(self, nobody_fd: int, proc_fd: int, overlay: Overlay | None, *, as_owner: bool) -> None:
        self.nobody_fd, self.proc_fd, self.overlay, self.as_owner = nobody_fd, proc_fd, overlay, as_owner
        self.notes: list[str] = []

    def assemble(self, progress: steps.Progress) -> None:
        """Assemble it and make it the root. Raises OSError; ``progress.now`` names the step."""
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
                part.how = LEFT_OUT  # below a directory closed to others: nobody could reach it
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
        """For a container with a user namespace: its mounts are locked together (mount_namespaces(7)), so none can
        be cloned alone.
        """
        attributes.add_everywhere(SAFE, self.proc_fd)
        progress.now = steps.MASKS
        whole = Part("/", "mounts locked together", os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        whole.how = "masked"
        whole.look()
        os.close(whole.tree_fd)
        self._cover([(f"/{path}", is_dir) for path, is_dir in whole.masks])
        self.notes.append(f"tools view: / ({whole.fstype}): {whole.how}")

    def _cover(self, masks: list[tuple[str, bool]]) -> None:
        """Cover each of MASKS with an empty mount. Raises OSError."""
        if not masks:
            return
        nothing = syscalls.new_filesystem("tmpfs", {"mode": "000", "size": "4k"}, SAFE & ~syscalls.MOUNT_ATTR_RDONLY)
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        try:
            os.mkdir("directory", 0, dir_fd=nothing)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=nothing))
            # Only what is mounted in this namespace can be cloned. This mount is the last to be unmounted.
            place = places.open_inside("/")
            syscalls.move_mount(nothing, place, "")
            os.close(place)
            # A clone has the attributes of its mount. Setting them one by one takes a process each without
            # mount_setattr(2).
            by_itself = attributes.are_known()
            if not by_itself:
                attributes.add_here(nothing, SAFE)
            for path, is_dir in masks:
                try:
                    fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, resolve)
                except FileNotFoundError:
                    continue  # it has been removed
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.ELOOP, errno.ENOTDIR):
                        # nobody can reach it; or it was replaced by another file, in a directory of root's
                        continue
                    raise
                try:
                    tree = syscalls.open_tree(nothing, "directory" if is_dir else "file", syscalls.OPEN_TREE_CLONE)
                    if by_itself:  # idmap the cover if possible: root with its capabilities opens its own files
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
        """Without root nothing can be idmapped and no mount left out: make it read-only, and cover what only the
        owner may read.
        """
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
    """Whether making a user namespace failed (errno NUMBER) because root's quota is used up: any container's uid 0
    counts towards it.

    A machine whose limit is 0 (/proc/sys/user, namespaces(7)) has no quota to use up.
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
    # Before anything is mounted: a shared mount would propagate it to the namespace we came from.
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    if tree_fd >= 0:
        make_root(tree_fd, progress)


def make_root(tree_fd: int, progress: steps.Progress) -> None:
    """Make a detached tree the root. Nothing of the old one stays mounted where a privileged session could find it.
    Raises OSError.
    """
    progress.now = steps.ROOT
    syscalls.move_mount(tree_fd, syscalls.AT_FDCWD, "/")
    os.fchdir(tree_fd)
    # A copy of a shared mount is shared, and pivot_root(2) refuses shared mounts.
    syscalls.mount(None, ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.close(tree_fd)
    os.chdir("/")
