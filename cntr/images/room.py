"""The environment of a stand-in: root, mounts, /proc, /dev, /sys. ``standin`` shows which process calls what.

From ``enter`` on the container's root is this process's: nothing is imported, every path is opened below it by openat2(2), and everything
of the host's is closed before the working directory is looked up.
"""

from __future__ import annotations

import _socket
import codecs
import errno
import fcntl
import os
import stat

from cntr.engines import commands
from cntr.errors import CntrError
from cntr.images import below, profile, served, volumes
from cntr.linux import attributes, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.images.blueprint import Blueprint, Mount

CLONE = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = (
    *(("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")),
    *(("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")),
)
SCRATCH = ("/tmp", "/mnt", "/media")  # covered in the builder's own mount namespace
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # netdevice(7)
codecs.lookup("unicode_escape")  # loaded here: later the import would read the container's files
SYSCTLS_OF_IPC = ("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")
UNKNOWN_OPTION = (22, 38)  # EINVAL, ENOSYS: no lowerdir+ (Linux 6.5)


class Room:
    """The mounts of a stand-in; ``step`` names the current step, for the error if it fails."""

    def __init__(
        self, blueprint: Blueprint, *, network: str, write: bool, confined: bool, say: Callable[[str], None]
    ) -> None:
        self.made, self.network, self.write, self.step = blueprint, network, write, "start"
        self.program = -1  # an fd of the stand-in's program
        self.joined: dict[str, int] = {}
        self.root = self.tree = self.proc = -1  # proc: the file system at /proc, even if something is mounted over it
        self.locked: os.stat_result | None = None  # its own layer, which nobody else writes to
        self._binds: list[tuple[Mount, int]] = []
        self._devices: dict[str, int] = {}
        self._sys = self._null = -1
        self._scratch, self._layers = "", 0
        self.tell: Callable[[str], object] = say  # is told what the engine would not start it with
        self._server = commands.trusted(served.PROGRAM) if blueprint.served else ""
        if blueprint.served and not self._server:
            raise CntrError(
                f"{blueprint.label()}: its layers need fuse-overlayfs, which is not installed", "install fuse-overlayfs"
            )
        if blueprint.served and blueprint.owner and not os.geteuid():
            raise CntrError(
                f"{blueprint.label()}: its layers need fuse-overlayfs, and the kernel hides a user's FUSE mounts from root",
                "as that user: `cntr`",
            )
        self.filter = profile.filter_of(blueprint.seccomp, blueprint.capabilities) if confined else b""
        if not (blueprint.lower or blueprint.upper or blueprint.disk):
            raise CntrError(
                f"{blueprint.label()}: none of its layers is unpacked here", "is its storage driver overlay?"
            )
        if write and not blueprint.upper:
            raise CntrError(f"{blueprint.label()}: --write: it has no layer of its own", "an image is never written to")
        if network == "container" and not (blueprint.join.get("net") or "net" in blueprint.share):
            say(f"note: {blueprint.label()} does not run, so it has no network: the session has only lo")

    def close(self) -> None:
        """Close this process's fds of it."""
        if self.program >= 0:
            os.close(self.program)
            self.program = -1

    def shared(self) -> set[str]:
        """The namespaces that stay the host's: the network, if asked for."""
        own = self.network == "host" or (self.network == "container" and "net" in self.made.share)
        return {"net"} if own else set()

    # --- in the builder ---------------------------------------------------------------------------------------------------

    def mount(self) -> None:
        """Make the root and the volumes, as detached mounts. Raises OSError.

        What a user named (``owner``) is opened and mounted with that user's rights, in the container's user namespace. An overlay reads
        its layers with its mounter's rights and merges directories, so one mounted by root would show directories that only root may
        enter.
        """
        made = self.made
        # Everything of the host's is opened first: the scratch directory hides what is below it.
        self.step = "open its layers"
        layers = [self._name(path) for path in made.lower for path in (path, *volumes.older(path))]
        upper, work = "", ""
        if self.write:
            upper, work = self._name(made.upper), self._name(made.work) if made.work else ""
            if self.locked and not os.path.samestat(self.locked, os.stat(upper)):
                raise OSError(errno.ESTALE, "another directory than a moment ago", made.upper)
            layers = [*map(self._name, volumes.older(made.upper)), *layers]
        elif made.upper:
            layers = [*map(self._name, (made.upper, *volumes.older(made.upper))), *layers]
        sources: list[int] = []
        mounts: list[Mount] = []
        for mount in made.mounts:
            self.step = f"open the volume for {mount.destination}"
            try:
                sources.append(os.open(mount.source, os.O_PATH | os.O_CLOEXEC) if mount.kind == "bind" else -1)
            except OSError as error:
                self.fault(error, f"its volume at {mount.destination}: {mount.source}")
            else:
                mounts.append(mount)
        self.step = "make a layer for its changes"
        scratch = self._scratch = next(path for path in SCRATCH if os.path.isdir(path))
        tmpfs = syscalls.new_filesystem("tmpfs", {"mode": "700"}, syscalls.MOUNT_ATTR_NODEV)
        syscalls.move_mount(tmpfs, syscalls.AT_FDCWD, scratch)
        if made.disk:
            self.step = f"mount {made.disk.path}"
            layers.append(self._attached(made.disk.mount(), "disk"))
        elif made.uid_map and not made.owner and not made.shift:
            own = 0 if self.write or not made.upper else 1  # the first is its own layer, which has the host's ids
            layers[own:] = [self._ours(path) for path in layers[own:]]
        if made.shift:
            if self.write:
                upper = self._shifted(upper)
            else:
                layers[0] = self._shifted(layers[0])
        if not self.write:
            upper, work = self._layer(os.stat(layers[0]))
        self.step = "mount its layers"
        self.tree = self._overlay(layers, upper, work)
        for mount, source in zip(mounts, sources):
            self.step = f"mount the volume for {mount.destination}"
            self._binds.append((mount, self._volume(source, mount) if source >= 0 else -1))

    def fault(self, error: OSError, what: str) -> None:
        """Continue without WHAT and report that; raise the error if exactly what the engine would start is wanted. Raises OSError."""
        if self.made.exact:
            where = str(error.filename or "")
            raise OSError(error.errno, os.strerror(error.errno or 0), None if where.startswith("fd ") else where)
        self.tell(f"{what}: {os.strerror(error.errno or 0)}: left out")

    def _overlay(self, layers: list[str], upper: str, work: str) -> int:
        """A detached overlay; without lower layers, the upper directory itself.

        Uses lowerdir+, which allows hundreds of layers (Linux 6.5), else mount(2), whose options are limited to a page.
        """
        made = self.made
        if not layers:
            tree = syscalls.open_tree(syscalls.AT_FDCWD, upper, syscalls.OPEN_TREE_CLONE)
            attributes.add(tree, syscalls.MOUNT_ATTR_NODEV)
            return tree
        if made.served:
            return served.overlay(self._server, layers, upper, work, self._scratch)
        options: list[tuple[str, str | None]] = [("source", "cntr"), *(("lowerdir+", path) for path in layers)]
        options += [("upperdir", upper), ("workdir", work)]
        options += [(key, value or None) for key, value in made.overlay.items()]
        try:
            return syscalls.new_filesystem("overlay", options, syscalls.MOUNT_ATTR_NODEV)
        except OSError as error:
            if error.errno not in UNKNOWN_OPTION:
                raise
        text = f"lowerdir={':'.join(layers)},upperdir={upper},workdir={work}"
        text += "".join(f",{key}={value}" if value else f",{key}" for key, value in made.overlay.items())
        os.mkdir(f"{self._scratch}/merged", 0o700)
        syscalls.mount("cntr", f"{self._scratch}/merged", "overlay", syscalls.MS_NODEV, text)
        return syscalls.open_tree(syscalls.AT_FDCWD, f"{self._scratch}/merged", syscalls.OPEN_TREE_CLONE)

    def _shifted(self, path: str) -> str:
        """A mount of a directory that shows the files' ids as the container's user namespace maps them outside."""
        made = self.made
        maps = ("".join(f"{a} {b} {count}\n" for a, b, count in rows) for rows in (made.uid_map, made.gid_map))
        users = namespaces.mapped(*maps)
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(tree, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=users)
        os.close(users)
        self._layers += 1
        return self._attached(tree, f"shifted{self._layers}")

    def _ours(self, path: str) -> str:
        """A layer of an image, shifted, as other containers have it with other ids or none; this
        container's own layer as it is.
        """
        owner = os.stat(path).st_uid
        return (
            path
            if any(outside <= owner < outside + count for _, outside, count in self.made.uid_map)
            else self._shifted(path)
        )

    def _attached(self, tree: int, name: str) -> str:
        """A detached mount in the scratch: an overlay's layers have to be in its maker's mount namespace."""
        os.mkdir(f"{self._scratch}/{name}", 0o700)
        syscalls.move_mount(tree, syscalls.AT_FDCWD, f"{self._scratch}/{name}")
        os.close(tree)
        return f"{self._scratch}/{name}"

    def _layer(self, top: os.stat_result) -> tuple[str, str]:
        """(upper, work): two new directories in the scratch; the upper one has the mode and owner of the directory it covers."""
        self._layers += 1
        upper, work = f"{self._scratch}/upper{self._layers}", f"{self._scratch}/work{self._layers}"
        for name in (upper, work):
            os.mkdir(name, 0o700)
        os.chown(upper, top.st_uid, top.st_gid)
        os.chmod(upper, stat.S_IMODE(top.st_mode))
        return upper, work

    def _name(self, path: str) -> str:
        """A short name for a directory of the host, so that neither its length nor a comma or colon in it matters."""
        flags = syscalls.RESOLVE_NO_SYMLINKS if self.made.engine == "dir" else 0  # a policy was asked about this path
        return f"/proc/self/fd/{syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, flags)}"

    def open_host_files(self) -> None:
        """Make the device nodes, as detached mounts, and open the namespaces to join. Raises OSError."""
        self.step = "make its devices"
        nodes = self._attached(syscalls.new_filesystem("tmpfs", {"mode": "755"}, syscalls.MOUNT_ATTR_NOSUID), "nodes")
        for name in DEVICES:
            host = f"/dev/{name}"
            try:
                os.mknod(f"{nodes}/{name}", stat.S_IFCHR | 0o666, os.stat(host).st_rdev)
                os.chmod(f"{nodes}/{name}", 0o666)
            except PermissionError:
                # No CAP_MKNOD, or a user's container: the host's device, whose owner and mode stay as they are.
                fd = syscalls.open_tree(syscalls.AT_FDCWD, host, syscalls.OPEN_TREE_CLONE)
                attributes.add(fd, syscalls.MOUNT_ATTR_RDONLY)
            else:
                fd = syscalls.open_tree(syscalls.AT_FDCWD, f"{nodes}/{name}", syscalls.OPEN_TREE_CLONE)
            self._devices[name] = fd
        if "net" in self.shared() and self.made.uid_map:
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
            self._sys = syscalls.open_tree(syscalls.AT_FDCWD, "/sys", flags)
        for kind, path in self.made.join.items():
            if kind != "net" or self.network in ("", "container"):
                self.step = f"open the {kind} namespace"
                self.joined[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _volume(self, source: int, mount: Mount) -> int:
        """A detached mount of a volume. Without --write changes are discarded: a directory gets a layer, a file is copied."""
        if "overlay" in mount.options or not (self.write or mount.read_only):
            status = os.fstat(source)
            try:
                if stat.S_ISDIR(status.st_mode):
                    return volumes.layered(source, mount, *self._layer(status))
                self._layers += 1
                name = self.made.hostname if mount.destination == "/etc/hosts" and self.made.own_name else ""
                return volumes.copied(source, mount, f"{self._scratch}/file{self._layers}", host=name)
            except OSError:
                pass  # then read-only
        return volumes.bound(source, mount, write=self.write)

    # --- in the stand-in --------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Make the tree the root of the new mount namespace and set it up. Raises OSError."""
        self.step = "make /proc"
        # While the host's is still mounted: in a user namespace the kernel requires one that is not covered.
        proc = syscalls.new_filesystem("proc", {}, _HARMLESS)
        self.step = "make /sys"
        sysfs = self._sys if self._sys >= 0 else syscalls.new_filesystem("sysfs", {}, _HARMLESS)
        attributes.add(sysfs, syscalls.MOUNT_ATTR_RDONLY)
        self.step = "make its root"
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.move_mount(self.tree, syscalls.AT_FDCWD, "/")
        os.fchdir(self.tree)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        self.root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._set_sysctls(proc)
        self.proc = os.dup(proc)
        self.step = "mount /proc"
        self._place(proc, "/proc", is_dir=True)
        self._place(sysfs, "/sys", is_dir=True)
        self._make_devices()
        for mount, fd in sorted(self._binds, key=lambda row: row[0].destination.count("/")):
            self.step = f"mount at {mount.destination}"
            if mount.kind == "tmpfs":
                fd = volumes.in_memory(mount, below.status(self.root, mount.destination))
            try:
                is_dir = mount.kind == "tmpfs" or stat.S_ISDIR(os.fstat(fd).st_mode)
                self._place(fd, mount.destination, is_dir=is_dir)
            except OSError as error:  # a file where the image had a directory, or the reverse
                self.fault(error, f"its volume at {mount.destination}")
        if not self.made.privileged:
            self._mask()
        self.step = "set its hostname"
        if self.made.hostname and "uts" not in self.joined:
            syscalls.sethostname(self.made.hostname)
        if "net" not in self.shared() and "net" not in self.joined:
            self.step = "bring up lo"
            _loopback()
        if self.made.read_only:
            self.step = "make its root read-only"
            attributes.add_here(self.root, syscalls.MOUNT_ATTR_RDONLY)

    def _set_sysctls(self, proc: int) -> None:
        """Set the sysctls of its own namespaces (sysctl(5))."""
        for name, value in self.made.sysctls.items():
            kind = "net" if name.startswith("net.") else "ipc" if name.startswith(SYSCTLS_OF_IPC) else ""
            kind = "uts" if name == "kernel.domainname" else kind
            if not kind or kind in self.shared() or kind in self.joined or "/" in name or ".." in name:
                continue
            try:
                fd = os.open(f"sys/{name.replace('.', '/')}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as error:
                self.fault(error, f"its sysctl {name}={value}")

    def _make_devices(self) -> None:
        self.step = "make /dev"
        # A node that its own processes make there does not work as a device.
        attrs = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_STRICTATIME
        dev = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "65536k"}, attrs)
        for name in DEVICES:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))
        for name, target in DEVICE_LINKS:
            os.symlink(target, name, dir_fd=dev)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
        self._place(dev, "/dev", is_dir=True, keep=True)
        for name, fd in self._devices.items():
            syscalls.move_mount(fd, dev, name)
        self._null = self._devices["null"]
        syscalls.move_mount(volumes.terminals(), dev, "pts")
        size = str(self.made.shm)
        syscalls.move_mount(syscalls.new_filesystem("tmpfs", {"mode": "1777", "size": size}, _HARMLESS), dev, "shm")
        try:
            syscalls.move_mount(syscalls.new_filesystem("mqueue", {}, _HARMLESS), dev, "mqueue")
        except OSError:
            pass  # a kernel without, or the queues of another user namespace
        os.close(dev)

    def _mask(self) -> None:
        for path in self.made.masked:
            self.step = f"mask {path}"
            fd = self._find(path)
            if fd >= 0:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    cover = syscalls.new_filesystem(
                        "tmpfs", {"mode": "755", "size": "4k"}, _HARMLESS | syscalls.MOUNT_ATTR_RDONLY
                    )
                else:
                    cover = syscalls.open_tree(self._null, "", CLONE)
                syscalls.move_mount(cover, fd, "")
                os.close(fd)
        for path in self.made.read_only_paths:
            self.step = f"make {path} read-only"
            fd = self._find(path)
            if fd >= 0:
                cover = syscalls.open_tree(fd, "", CLONE | syscalls.AT_RECURSIVE)
                attributes.add(cover, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
                syscalls.move_mount(cover, fd, "")
                os.close(fd)

    def _find(self, path: str) -> int:
        """An O_PATH fd of PATH, following no symbolic link; -1."""
        try:
            return syscalls.openat2(
                self.root, path.lstrip("/"), os.O_PATH, below.IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
            )
        except OSError:
            return -1

    def _place(self, tree: int, path: str, *, is_dir: bool, keep: bool = False) -> None:
        """Mount a detached tree at a path below the root, which is created if missing."""
        relative = path.lstrip("/")
        if not relative:
            raise OSError(22, "nothing is mounted over the root", path)
        try:
            fd = below.opened(self.root, relative)
        except FileNotFoundError:
            below.make(self.root, relative, is_dir=is_dir)
            fd = below.opened(self.root, relative)
        syscalls.move_mount(tree, fd, "")
        os.close(fd)
        if not keep:
            os.close(tree)


_HARMLESS = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


def _loopback() -> None:
    """Like `ip link set lo up` (netdevice(7), SIOCSIFFLAGS). struct ifreq: the name in 16 bytes, the flags in two."""
    stream = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(stream.fileno(), SIOCSIFFLAGS, b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, "little") + bytes(22))
    finally:
        stream.close()
