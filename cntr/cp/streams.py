"""The caller's open files as source or destination: standard input, standard output, ``/dev/fd/N``.

They have no name, owner or length: bytes are read to the end, or written in order.
"""

from __future__ import annotations

import os
import select
import stat
import time

from cntr.cp import stream
from cntr.cp.receive import Receiver
from cntr.cp.send import Sender
from cntr.cp.stream import Meta, ProtocolError
from cntr.errors import CntrError


class StreamSender(Sender):
    """Sends the content of an open file."""

    def run(self, path: bytes, *, follow: bool) -> None:
        """Send it as a regular file. Raises CntrError, BrokenPipeError, EOFError."""
        self.shown = path
        info, mask, now = os.fstat(self.fd), os.umask(0), time.time_ns()
        os.umask(mask)
        if stat.S_ISDIR(info.st_mode):
            raise CntrError(f"{self.tell.show(path)}: a directory", "name it by its path")
        meta = Meta(stat.S_IFREG | 0o666 & ~mask, os.geteuid(), os.getegid(), now, now, 0, False)
        self.out.send(stream.START, b"\0", stream.pack_item(meta, path.rstrip(b"/").rsplit(b"/", 1)[-1]))
        self.out.flush()
        self.started(meta)
        self._await_ready()
        size, whole = 0, False
        try:
            while data := self._read():
                self.out.send(stream.BLOCK, stream.OFFSET.pack(size), data)
                size += len(data)
            self.out.send(stream.TRUNCATE, stream.OFFSET.pack(size))
            whole = True
        except OSError as error:
            self._problem(b"", error)
        self.out.send(stream.END, b"\1" if whole else b"\0")
        self.out.send(stream.DONE)
        self.out.flush()

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self.fd, stream.CHUNK)
            except BlockingIOError:  # the caller has set O_NONBLOCK
                select.select([self.fd], [], [])


class StreamReceiver(Receiver):
    """Writes a file to an open one, with zeros for holes."""

    position = 0  # bytes written

    def _start(self, path: bytes) -> None:
        """Wait for the file and answer READY. Raises CntrError, ProtocolError, EOFError."""
        meta, _, _ = self._first(path)
        if not meta.is_file():
            hint = "-L copies what it names" if stat.S_ISLNK(meta.mode) else "only a file's data can be written there"
            raise CntrError(f"{self.tell.show(path)}: {stream.kind_of(meta.mode)}: not written", hint)
        self.answers.send(stream.READY, stream.NUMBERS.pack(0, 0))
        self.answers.flush()

    def _take(self, kind: bytes, body: bytes) -> bool:
        """Handle one frame; False for the last."""
        if kind == stream.BLOCK:
            self._zeros_until(stream.OFFSET.unpack_from(body)[0])
            self._write(memoryview(body)[stream.OFFSET.size :])
            self.moved(len(body))
        elif kind == stream.TRUNCATE:
            self._zeros_until(stream.OFFSET.unpack(body)[0])
        elif kind == stream.DONE:
            return False
        elif kind not in (stream.XATTR, stream.END) and not stream.take_word(kind, body, self.tell):
            raise ProtocolError(f"an unknown frame: {kind!r}")
        return True

    def _zeros_until(self, offset: int) -> None:
        if offset < self.position:
            raise ProtocolError(f"data at {offset}, behind {self.position}")
        zeros = memoryview(bytes(min(offset - self.position, stream.CHUNK)))
        while self.position < offset:
            self._write(zeros[: offset - self.position])

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                count = os.write(self.fd, data)
            except BlockingIOError:
                select.select([], [self.fd], [])
                continue
            except OSError as error:
                raise CntrError(f"{self.tell.show(self.shown)}: write: {os.strerror(error.errno or 0)}") from None
            self.position += count
            data = data[count:]
