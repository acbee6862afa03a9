"""Reading and writing: offsets, holes, mmap, direct I/O, limits."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from .. import syscalls
from ..actors import USER, Actor
from ._tools import Unsupported, child, equal, finished, in_threads, make, opened, raises

TIB = 1 << 40
CREATE = os.O_CREAT | os.O_RDWR


def _pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which every position differs from its neighbours."""
    import random

    return random.Random(seed).randbytes(size)


def check_sizes_around_page_and_request_limits(here: Path) -> None:
    for size in (0, 1, 4095, 4096, 4097, 65535, 131072, 131073, 1048576, 1048577, 3000001):
        data = _pattern(size)
        make(here / f"{size}", data)
        equal((here / f"{size}").read_bytes(), data, f"{size} bytes")
        equal(os.stat(here / f"{size}").st_size, size)


def check_data_reaches_the_backing_file(here: Path, behind: Path) -> None:
    data = _pattern(300000)
    make(here / "f", data)
    equal((behind / "f").read_bytes(), data)


def check_overlapping_writes(here: Path) -> None:
    import random

    rng = random.Random(7)
    model = bytearray()
    with opened(here / "f", CREATE) as fd:
        for _ in range(300):
            at, data = rng.randrange(200000), rng.randbytes(rng.randrange(1, 20000))
            if at > len(model):
                model.extend(bytes(at - len(model)))
            model[at : at + len(data)] = data
            equal(os.pwrite(fd, data, at), len(data))
            start = rng.randrange(200000)
            equal(os.pread(fd, 5000, start), bytes(model[start : start + 5000]))
    equal((here / "f").read_bytes(), bytes(model))


def check_write_past_the_end_leaves_zeros(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        os.pwrite(fd, b"head", 0)
        os.pwrite(fd, b"tail", 100000)
        equal(os.pread(fd, 100004, 0), b"head" + bytes(99996) + b"tail")
        equal(os.pread(fd, 10, 100004), b"")
        equal(os.pread(fd, 10, 200000), b"")


def check_truncate_down_and_up_clears(here: Path) -> None:
    """What was cut off must not come back from a cache."""
    with opened(here / "f", CREATE) as fd:
        os.write(fd, b"x" * 10000)
        os.ftruncate(fd, 100)
        os.ftruncate(fd, 10000)
        equal(os.pread(fd, 10000, 0), b"x" * 100 + bytes(9900))
    os.truncate(here / "f", 50)
    os.truncate(here / "f", 200)
    equal((here / "f").read_bytes(), b"x" * 50 + bytes(150))


def check_truncate_errors(here: Path) -> None:
    make(here / "f", b"x", 0o644)
    raises(errno.EINVAL, os.truncate, here / "f", -1)
    raises(errno.EISDIR, os.truncate, here, 0)
    raises(errno.EACCES, USER, os.truncate, here / "f", 0)
    try:
        os.truncate(here / "f", (1 << 63) - 1)
    except OSError as error:
        equal(error.errno, errno.EFBIG)
    else:  # tmpfs accepts everything that fits in a signed number
        equal(os.stat(here / "f").st_size, (1 << 63) - 1)


def check_three_tebibyte_offsets(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        try:
            os.pwrite(fd, b"far", 3 * TIB)
        except OSError as error:
            raise Unsupported(f"files of 3 TiB ({error.strerror})") from error
        equal(os.fstat(fd).st_size, 3 * TIB + 3)
        equal(os.pread(fd, 10, 3 * TIB), b"far")
        equal(os.pread(fd, 4, 2 * TIB), bytes(4))
        equal(os.lseek(fd, -1, os.SEEK_END), 3 * TIB + 2)
        assert os.fstat(fd).st_blocks < 1000, "a hole of 3 TiB takes no space"


def check_vectors(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        equal(os.writev(fd, [b"ab", b"", b"cde" * 3000]), 9002)
        first, second = bytearray(5), bytearray(10)
        equal(os.preadv(fd, [first, second], 0), 15)
        equal(bytes(first + second), (b"ab" + b"cde" * 5)[:15])


def check_sendfile_and_splice(here: Path) -> None:
    data = _pattern(500000)
    make(here / "in", data)
    with opened(here / "in") as source, opened(here / "out", CREATE) as target:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(target, source, sent, len(data) - sent)
    equal((here / "out").read_bytes(), data)
    read_end, write_end = os.pipe()
    with opened(here / "in") as source, opened(here / "spliced", CREATE) as target:
        moved = 0
        while moved < len(data):
            count = syscalls.splice(source, write_end, 65536)
            while count:
                done = syscalls.splice(read_end, target, count)
                moved, count = moved + done, count - done
    os.close(read_end)
    os.close(write_end)
    equal((here / "spliced").read_bytes(), data)


def check_mmap_shared_is_one_with_read_and_write(here: Path) -> None:
    make(here / "f", b"a" * 10000)
    with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 10000) as view:
        view[5000:5005] = b"MAPPD"
        equal(os.pread(fd, 5, 5000), b"MAPPD", "read after a store")
        os.pwrite(fd, b"WROTE", 100)
        equal(view[100:105], b"WROTE", "load after a write")
        with opened(here / "f") as other:
            equal(os.pread(other, 5, 5000), b"MAPPD", "another descriptor")
        view.flush()
    equal((here / "f").read_bytes()[5000:5005], b"MAPPD")


def check_mmap_reaches_the_backing_file(here: Path, behind: Path) -> None:
    make(here / "f", b"a" * 8192)
    with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 8192) as view:
        view[4090:4100] = b"0123456789"
        view.flush()
        os.fsync(fd)
        equal((behind / "f").read_bytes()[4090:4100], b"0123456789")


def check_mmap_between_processes(here: Path) -> None:
    make(here / "f", bytes(4096))

    def store() -> None:
        with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 4096) as view:
            view[7] = 77

    with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 4096) as view:
        finished(child(store))
        equal(view[7], 77)


def check_mmap_private_stays_private(here: Path) -> None:
    make(here / "f", b"a" * 4096)
    with opened(here / "f") as fd, mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[0] = ord("z")
    equal((here / "f").read_bytes()[0], ord("a"))


def check_mmap_outlives_close_unlink_and_truncate(here: Path) -> None:
    make(here / "f", b"mapped" * 1000)
    fd = os.open(here / "f", os.O_RDWR)
    with mmap.mmap(fd, 6000) as view:
        os.close(fd)
        os.unlink(here / "f")
        view[0:6] = b"MAPPED"
        equal(view[0:12], b"MAPPEDmapped")


def check_mmap_past_the_end_is_sigbus(here: Path) -> None:
    make(here / "f", b"x" * 8192)
    script = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR); view = mmap.mmap(fd, 8192)\n"
        "os.ftruncate(fd, 100); assert view[50] == ord('x') and view[200] == 0; view[5000]\n"
    )
    result = subprocess.run([sys.executable, "-I", "-c", script, here / "f"], capture_output=True)
    equal(result.returncode, -signal.SIGBUS, result.stderr.decode())


def check_mmap_sees_growth(here: Path) -> None:
    make(here / "f", b"x" * 100)
    with opened(here / "f", os.O_RDWR) as fd:
        os.ftruncate(fd, 8192)
        with mmap.mmap(fd, 8192) as view:
            os.pwrite(fd, b"grown", 8000)
            equal(view[8000:8005], b"grown")
            equal(view[100:110], bytes(10))


def check_direct_io(here: Path) -> None:
    """The caller opens with O_DIRECT; the server's reads use buffers of their own and must not inherit it."""
    try:
        fd = os.open(here / "f", CREATE | os.O_DIRECT)
    except OSError as error:
        raise Unsupported(f"O_DIRECT ({error.strerror})") from error
    try:
        with mmap.mmap(-1, 65536) as buffer:
            buffer[:] = _pattern(65536)
            equal(os.pwritev(fd, [buffer], 0), 65536)
            with mmap.mmap(-1, 65536) as back:
                equal(os.preadv(fd, [back], 0), 65536)
                equal(back[:], buffer[:])
                equal(os.preadv(fd, [memoryview(back)[:4096]], 61440), 4096)
                equal(os.preadv(fd, [memoryview(back)[:4096]], 65536), 0, "read at the end")
            equal((here / "f").read_bytes(), buffer[:], "buffered read after direct write")
    finally:
        os.close(fd)


def check_direct_and_buffered_and_mapped_agree(here: Path) -> None:
    """The paper's CntrFS could not do this (xfstests generic/391)."""
    make(here / "f", b"0" * 8192)
    try:
        direct = os.open(here / "f", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        raise Unsupported(f"O_DIRECT ({error.strerror})") from error
    try:
        with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 8192) as view, mmap.mmap(-1, 4096) as buffer:
            buffer[:] = b"D" * 4096
            os.pwritev(direct, [buffer], 0)
            equal(os.pread(fd, 2, 0), b"DD", "buffered read after direct write")
            equal(view[0:2], b"DD", "mapped load after direct write")
            os.pwrite(fd, b"B" * 4096, 4096)
            os.preadv(direct, [buffer], 4096)
            equal(buffer[0:2], b"BB", "direct read after buffered write")
            view[0:4] = b"MMMM"
            os.preadv(direct, [buffer], 0)
            equal(buffer[0:4], b"MMMM", "direct read after a store")
    finally:
        os.close(direct)


def check_file_size_limit(here: Path) -> None:
    """The caller's RLIMIT_FSIZE counts, not the server's (xfstests generic/228)."""

    def body() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))
        with opened(here / "f", CREATE) as fd:
            equal(os.pwrite(fd, b"x" * 20000, 0), 10000, "a write up to the limit is short")
            raises(errno.EFBIG, os.pwrite, fd, b"x", 10000)
            raises(errno.EFBIG, os.ftruncate, fd, 10001)
            os.ftruncate(fd, 10000)
            os.pwrite(fd, b"y", 0)
        raises(errno.EFBIG, os.truncate, here / "f", 20000)

    Actor("limited")(body)
    equal(os.stat(here / "f").st_size, 10000)


def check_file_size_limit_sends_the_signal(here: Path) -> None:
    def body() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores this signal
        with opened(here / "f", CREATE) as fd:
            os.pwrite(fd, b"x", 200)

    finished(child(body), -signal.SIGXFSZ)


def check_bad_offsets(here: Path) -> None:
    make(here / "f", b"x")
    with opened(here / "f", os.O_RDWR) as fd:
        raises(errno.EINVAL, os.pread, fd, 1, -1)
        raises(errno.EINVAL, os.pwrite, fd, b"x", -1)
        raises(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
        raises((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"x", (1 << 63) - 2)
        equal(os.lseek(fd, 1000, os.SEEK_SET), 1000)
        equal(os.read(fd, 10), b"")


def check_writers_in_threads(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:

        def write(number: int) -> None:
            for block in range(number, 256, 8):
                os.pwrite(fd, bytes([block]) * 4096, block * 4096)

        in_threads(8, write)
    data = (here / "f").read_bytes()
    equal(data, b"".join(bytes([block]) * 4096 for block in range(256)))


def check_reader_follows_a_growing_file(here: Path) -> None:
    """tail -f: each read sees what was just written through another descriptor."""
    make(here / "log")
    with opened(here / "log") as reader, opened(here / "log", os.O_WRONLY | os.O_APPEND) as writer:
        for number in range(200):
            line = b"line %d\n" % number
            os.write(writer, line)
            equal(os.read(reader, 100), line)


def check_size_is_seen_at_once(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        for number in range(1, 50):
            os.write(fd, b"x" * 100)
            equal(os.stat(here / "f").st_size, number * 100)
        os.ftruncate(fd, 7)
        equal(os.stat(here / "f").st_size, 7)


def check_advice(here: Path) -> None:
    make(here / "f", _pattern(1 << 20))
    with opened(here / "f") as fd:
        for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM):
            os.posix_fadvise(fd, 0, 0, advice)
        equal(os.pread(fd, 1 << 20, 0), _pattern(1 << 20))


def check_poll_says_ready(here: Path) -> None:
    import select

    make(here / "f", b"x")
    with opened(here / "f", os.O_RDWR) as fd:
        poller = select.poll()
        poller.register(fd, select.POLLIN | select.POLLOUT)
        equal(poller.poll(1000), [(fd, select.POLLIN | select.POLLOUT)])


def check_epoll_refuses_regular_files(here: Path) -> None:
    import select

    make(here / "f", b"x")
    with opened(here / "f", os.O_RDWR) as fd, select.epoll() as epoll:
        raises(errno.EPERM, epoll.register, fd)


def check_copies_survive_cache_drop(here: Path, behind: Path) -> None:
    """What was written is on the disk, and neither side's page cache is needed to read it."""
    data = _pattern(1 << 20, seed=3)
    make(here / "f", data)
    for path in (here / "f", behind / "f"):
        with opened(path) as fd:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    equal((here / "f").read_bytes(), data)
    syscalls.statx(here / "f")
