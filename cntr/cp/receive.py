"""The receiving end: builds a tree below one directory fd, whatever names and symbolic links exist or appear meanwhile.

Names are single components, directories are opened with O_NOFOLLOW and held by fd, and a hard link's other name is
opened with RESOLVE_BENEATH, so nothing is written outside. A file has a temporary name until it is complete.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import links, stream
from cntr.cp.files import (
    NotReplaced,
    Partial,
    copy_data,
    mode_of,
    overwrite,
    place,
    remove,
    replaceable,
    temporary_name,
)
from cntr.cp.metadata import Metadata
from cntr.cp.stream import Incoming, Meta, Outgoing, ProtocolError, Tell, denied
from cntr.errors import CntrError
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Errors after which every other file would fail too.
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class Level:
    """A directory being received: its fd, -1 if it could not be created; meta: None if it existed before."""

    __slots__ = ("fd", "meta", "name")

    def __init__(self, fd: int, name: bytes, meta: Meta | None) -> None:
        """fd: owned."""
        self.fd, self.name, self.meta = fd, name, meta


class Receiver:
    """Receives one file or tree.

    open_path: opens what the user named on this side: ``(path, flags) → fd``; started: called with what is received;
    moved: called with counts of bytes.
    """

    fd = -1  # an open file to write to instead, see ``streams``

    def __init__(
        self,
        incoming: Incoming,
        answers: Outgoing,
        tell: Tell,
        open_path: Callable[[bytes, int], int],
        *,
        archive: bool,
    ) -> None:
        """archive: keep owner, set-id bits and the attributes that depend on the owner."""
        self.incoming, self.answers, self.tell, self.open_path = incoming, answers, tell, open_path
        self.metadata = Metadata(tell, self._path, archive=archive)
        self.levels: list[Level] = []
        self.file: Partial | None = None
        self.unfinished = (-1, b"")  # directory and name of the last temporary file, noted before it is created
        self.top_fd = self.parent_fd = -1
        # path below the top → device and inode of what was created there
        self.linked: dict[bytes, tuple[int, int]] = {}
        self.shown = b""
        self.started: Callable[[Meta], None] = stream.nothing
        self.moved: Callable[[int], None] = stream.nothing

    def run(self, path: bytes) -> None:
        """Receive until DONE. Raises CntrError, EOFError if the sender has gone, ProtocolError; leaves no partial file."""
        try:
            self._start(path)
            while self._take(*self.incoming.receive()):
                pass
        except BrokenPipeError:
            raise EOFError from None
        except OSError as error:
            shown = self.tell.show(self._path(b""))
            raise CntrError(f"{shown}: {_reason(error)}", self._hint(error)) from None
        finally:
            if self.file:
                self.file.drop()
                self.file = None
            remove(*self.unfinished)  # a signal may have come at any moment; what was finished has another name
            for fd in (self.parent_fd, *(level.fd for level in self.levels)):
                if fd >= 0:
                    os.close(fd)
            self.levels, self.parent_fd = [], -1

    def _first(self, path: bytes) -> tuple[Meta, bytes, bytes]:
        """(meta, name, symbolic link's target) of the top item; without a name: the contents of a directory."""
        kind, body = self.incoming.receive()
        while stream.take_word(kind, body, self.tell):
            kind, body = self.incoming.receive()
        if kind != stream.START:
            raise ProtocolError(f"not the start: {kind!r}")
        contents = body[0] == 1
        meta, name, target = stream.unpack_item(body[1:], named=not contents)
        self.started(meta)
        self.shown = path
        return meta, b"" if contents else name, target

    def _start(self, path: bytes) -> None:
        meta, name, target = self._first(path)
        dir_fd, place = self._destination(path, meta, name)
        identity = (0, 0)
        if not place:
            self.parent_fd = -1  # the level owns it
        if not stat.S_ISDIR(meta.mode):
            self._make(dir_fd, place, meta, target)
        else:
            self.levels.append(self._directory(dir_fd, place, meta) if place else Level(dir_fd, b"", None))
            self.levels[0].name = b""
            self.top_fd = self.levels[0].fd
            info = os.fstat(self.top_fd)
            identity = (info.st_dev, info.st_ino)
        self.answers.send(stream.READY, stream.NUMBERS.pack(*identity))
        self.answers.flush()

    def _destination(self, path: bytes, meta: Meta, name: bytes) -> tuple[int, bytes]:
        """(directory fd, name in it) of what is to be created; without a name, the contents go into the directory
        itself.
        """
        is_dir = stat.S_ISDIR(meta.mode)
        show = self.tell.show
        try:
            fd = self.open_path(path, DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise CntrError(f"{show(path)}: {os.strerror(error.errno or 0)}", self._hint(error)) from None
        else:
            self.parent_fd = fd
            self.shown = b"%s/%s" % (path.rstrip(b"/"), name) if name else path
            return fd, name
        if path.endswith(b"/") and not is_dir:
            raise CntrError(f"{show(path)}: no such directory", "without the slash at its end it names the new file")
        parent, slash, last = path.rstrip(b"/").rpartition(b"/")
        parent = parent or (b"/" if slash else b".")
        try:
            fd = self.open_path(parent, DIRECTORY)
        except OSError as error:
            hint = self._hint(error) or "the directory to copy into has to exist"
            raise CntrError(f"{show(parent)}: {os.strerror(error.errno or 0)}", hint) from None
        self.parent_fd = fd
        mode = mode_of(fd, last)
        if mode and is_dir:
            raise CntrError(f"{show(path)}: {stream.kind_of(mode)}", "a directory cannot take the place of a file")
        what = links.stands_for(fd, last) if stat.S_ISLNK(mode) else "" if replaceable(mode) else stream.kind_of(mode)
        if mode and what:
            hint = "`cntr cp TARGET:/PATH /dev/stdout` prints a file"
            raise CntrError(f"{show(path)}: {what}: not replaced", hint)
        return fd, last

    def _hint(self, error: OSError) -> str:
        if error.errno == errno.EROFS:
            return "it is mounted read-only there; a container's volumes and tmpfs mounts may be writable"
        if error.errno in (errno.EACCES, errno.EPERM):
            return denied(self.tell.label)
        return ""

    def _path(self, name: bytes) -> bytes:
        if not self.levels:
            return self.shown  # the top itself
        parts = [*(level.name for level in self.levels), name]
        return b"/".join([self.shown.rstrip(b"/") or b"/", *(part for part in parts if part)])

    def _below(self, name: bytes) -> bytes:
        return b"/".join(part for part in (*(level.name for level in self.levels), name) if part)

    def _problem(self, name: bytes, error: OSError, what: str = "") -> None:
        """Report an error of one file. Raises CntrError if all further files would have the same error."""
        reason = what + _reason(error)
        if error.errno in FULL:
            raise CntrError(
                f"{self.tell.show(self._path(name))}: {reason}",
                "what was copied before is whole; make room and run it again",
            ) from None
        self.tell.problem(self._path(name), reason)

    def _take(self, kind: bytes, body: bytes) -> bool:
        """Handle one frame; False for the last."""
        if kind == stream.BLOCK:
            self.moved(len(body))
            self._block(stream.OFFSET.unpack_from(body)[0], memoryview(body)[stream.OFFSET.size :])
        elif kind in (stream.ITEM, stream.LINK):
            self._item(kind, *stream.unpack_item(body))
        elif kind == stream.TRUNCATE:
            self._truncate(stream.OFFSET.unpack(body)[0])
        elif kind == stream.XATTR:
            level = self.levels[-1] if self.levels else None
            if self.file:
                self.metadata.attribute(self.file.fd, *stream.unpack_pair(body), self.file.name)
            elif level and level.meta and level.fd >= 0:
                self.metadata.attribute(level.fd, *stream.unpack_pair(body), b"")
        elif kind == stream.END:
            self._end(body == b"\1")
        elif kind == stream.UP:
            self._up()
        elif kind == stream.DONE:
            return False
        elif not stream.take_word(kind, body, self.tell):
            raise ProtocolError(f"an unknown frame: {kind!r}")
        return True

    def _item(self, kind: bytes, meta: Meta, name: bytes, extra: bytes) -> None:
        if not self.levels:
            raise ProtocolError("an item outside of any directory")
        dir_fd = self.levels[-1].fd
        try:
            if kind == stream.LINK:
                if dir_fd >= 0:
                    self._link(dir_fd, name, meta, extra)
            elif stat.S_ISDIR(meta.mode):
                self.levels.append(self._directory(dir_fd, name, meta) if dir_fd >= 0 else Level(-1, name, None))
            elif dir_fd >= 0:
                self._make(dir_fd, name, meta, extra)
        except OSError as error:
            self._problem(name, error)
            if stat.S_ISDIR(meta.mode):
                self.levels.append(Level(-1, name, None))  # its contents are discarded

    def _directory(self, dir_fd: int, name: bytes, meta: Meta) -> Level:
        """Create a directory, or enter an existing one, which keeps its mode, owner and time. Raises OSError."""
        made, flags = True, os.O_RDONLY
        try:
            os.mkdir(name, 0o700, dir_fd=dir_fd)
        except FileExistsError:
            made, flags = False, os.O_PATH
        fd = os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        if made:
            self.metadata.give(fd, meta, name)
        return Level(fd, name, meta if made else None)

    def _temporary(self, dir_fd: int) -> bytes:
        """A name in that directory, to be removed at the end if a file still has it."""
        self.unfinished = (dir_fd, temporary_name())
        return self.unfinished[1]

    def _make(self, dir_fd: int, name: bytes, meta: Meta, target: bytes) -> None:
        """Start a regular file, or create a symbolic link. Raises OSError."""
        if stat.S_ISREG(meta.mode):
            self.file = Partial(dir_fd, name, meta, self._temporary(dir_fd))
            self.metadata.give(self.file.fd, meta, name)
        elif stat.S_ISLNK(meta.mode):
            temporary = self._temporary(dir_fd)
            os.symlink(target, temporary, dir_fd=dir_fd)
            try:
                self.metadata.own(
                    meta, name, lambda *ids: os.chown(temporary, *ids, dir_fd=dir_fd, follow_symlinks=False)
                )
                os.utime(temporary, ns=(meta.atime, meta.mtime), dir_fd=dir_fd, follow_symlinks=False)
                place(dir_fd, temporary, name)
            except BaseException:
                remove(dir_fd, temporary)
                raise
        else:
            raise ProtocolError(f"an item of mode {meta.mode:o}")

    def _block(self, offset: int, data: memoryview) -> None:
        if not self.file:
            return
        try:
            while data:
                count = os.pwrite(self.file.fd, data, offset)
                data, offset = data[count:], offset + count
        except (OSError, OverflowError) as error:
            self._lose(error, "write: ")

    def _lose(self, error: OSError | OverflowError, what: str) -> None:
        """The current file cannot be completed: drop it, and ignore the rest of its data."""
        assert self.file
        name = self.file.name
        self.file.drop()
        self.file = None
        self._problem(name, error if isinstance(error, OSError) else OSError(errno.EFBIG, ""), what)

    def _truncate(self, size: int) -> None:
        if self.file:
            try:
                os.ftruncate(self.file.fd, size)  # a hole at the end
            except (OSError, OverflowError) as error:
                self._lose(error, "write: ")

    def _end(self, whole: bool) -> None:
        file, self.file = self.file, None
        if not file:
            return
        if not whole:
            file.drop()
            return
        try:
            self.metadata.settle(file.fd, file.meta, file.name)
            try:
                place(file.dir_fd, file.temporary, file.name)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                overwrite(file)  # a file is mounted there, as engines mount /etc/hosts: write into it
                remove(file.dir_fd, file.temporary)
            if file.meta.linked:
                info = os.fstat(file.fd)
                self.linked[self._below(file.name)] = (info.st_dev, info.st_ino)
        except OSError as error:
            remove(file.dir_fd, file.temporary)
            self._problem(file.name, error)
        finally:
            os.close(file.fd)

    def _up(self) -> None:
        if not self.levels:
            raise ProtocolError("up from the top")
        level = self.levels.pop()
        if level.fd < 0:
            return
        if level.meta:
            self.metadata.settle(level.fd, level.meta, level.name)
        os.close(level.fd)

    def _link(self, dir_fd: int, name: bytes, meta: Meta, other: bytes) -> None:
        """Create a hard link to what was created at OTHER, or a copy if no link is possible. Raises OSError."""
        if other not in self.linked:
            self.tell.problem(self._path(name), "a hard link to a file that could not be copied")
            return
        parent, _, last = other.rpartition(b"/")
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        parent_fd = syscalls.openat2(self.top_fd, parent or b".", DIRECTORY, resolve)
        temporary = self._temporary(dir_fd)
        try:
            os.link(last, temporary, src_dir_fd=parent_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            found = os.stat(temporary, dir_fd=dir_fd, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != self.linked[other]:
                raise OSError(errno.ESTALE, "replaced meanwhile")
            place(dir_fd, temporary, name)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self._copy_linked(parent_fd, last, dir_fd, name, meta, self.linked[other])
        finally:
            remove(dir_fd, temporary)  # it still exists if both names were links to one file (rename(2))
            os.close(parent_fd)

    def _copy_linked(
        self, parent_fd: int, last: bytes, dir_fd: int, name: bytes, meta: Meta, identity: tuple[int, int]
    ) -> None:
        source = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            info = os.fstat(source)
            if (info.st_dev, info.st_ino) != identity:
                raise OSError(errno.ESTALE, "replaced meanwhile")
            self._make(dir_fd, name, meta, b"")
            assert self.file
            copy_data(source, self.file.fd)
            self._end(True)
        finally:
            os.close(source)


def _reason(error: OSError) -> str:
    return str(error.strerror) if isinstance(error, NotReplaced) else os.strerror(error.errno or 0)
