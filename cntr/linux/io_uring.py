"""io_uring(7): one ring, made and used by one thread.

With IORING_SETUP_DEFER_TASKRUN completions are posted only inside that thread's own io_uring_enter(2). So the two sides
never access the shared memory at the same time, and no architecture needs a memory barrier.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct

from cntr.linux.file_syscalls import _fail, _libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# From 424 on, system call numbers are the same on all architectures except alpha.
_SYS_IO_URING_SETUP, _SYS_IO_URING_ENTER = 425, 426
# linux/io_uring.h
IORING_OP_READ, IORING_OP_URING_CMD = 22, 46
IORING_ENTER_GETEVENTS = 1 << 0
IORING_SETUP_CQSIZE = 1 << 3
IORING_SETUP_SUBMIT_ALL = 1 << 7
IORING_SETUP_SQE128 = 1 << 10
IORING_SETUP_SINGLE_ISSUER = 1 << 12
IORING_SETUP_DEFER_TASKRUN = 1 << 13
IORING_OFF_SQ_RING, IORING_OFF_SQES = 0, 0x10000000
_FLAGS = (
    IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
)  # fmt: skip
# struct io_uring_params: sq_entries cq_entries flags sq_thread_cpu sq_thread_idle features wq_fd resv[3], sq_off, cq_off
_PARAMS_SIZE, _SQ_OFF, _CQ_OFF = 120, 40, 80
_COUNTS = struct.Struct("=III")
_SQ_OFFSETS = struct.Struct("=IIIIIII")  # head tail ring_mask ring_entries flags dropped array
_CQ_OFFSETS = struct.Struct("=IIIIII")  # head tail ring_mask ring_entries overflow cqes
# struct io_uring_sqe, the fields used: opcode flags ioprio fd cmd_op pad addr len rw_flags user_data buf_index…, and
# from byte 48 on the command: flags, commit_id, qid of struct fuse_uring_cmd_req
_SQE = struct.Struct("=BBHiIIQIIQQQQQ")
_SQE_SIZE = 128
_CQE = struct.Struct("=QiI")  # user_data res flags
_SQ_ENTRIES, _CQ_ENTRIES = 64, 256
_long, _int = ctypes.c_long, ctypes.c_int


def buffer_address(buffer: mmap.mmap) -> int:
    """The address of a writable mapping, which must stay open while the kernel may use it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def anonymous(size: int) -> mmap.mmap:
    """Anonymous memory: it takes up only the pages touched, and child processes do not inherit it."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    with contextlib.suppress(OSError):  # not supported by this kernel
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # otherwise one touched page could take up two megabytes
    return memory


def _setup() -> tuple[int, bytearray]:
    """io_uring_setup(2): (fd, close-on-exec; struct io_uring_params as filled in by the kernel)."""
    params = bytearray(_PARAMS_SIZE)
    _COUNTS.pack_into(params, 0, _SQ_ENTRIES, _CQ_ENTRIES, _FLAGS)
    buffer = (ctypes.c_char * _PARAMS_SIZE).from_buffer(params)
    fd = int(_libc.syscall(_long(_SYS_IO_URING_SETUP), _SQ_ENTRIES, ctypes.byref(buffer)))
    if fd < 0:
        raise _fail("io_uring_setup")
    return fd, params


class Ring:
    """One ring. Only the thread that made it may use it."""

    def __init__(self) -> None:
        """Raises OSError: EPERM (kernel.io_uring_disabled, a seccomp filter), ENOSYS, EINVAL (kernel before 6.1),
        ENOMEM.
        """
        self.fd, params = _setup()
        self._maps: list[mmap.mmap] = []
        try:
            self._map(params)
        except BaseException:
            self.close()
            raise
        self.pending = 0  # entries not yet submitted to the kernel
        self._enter: Callable[..., int] = _libc["syscall"]

    def _map(self, params: bytearray) -> None:
        sq_entries, cq_entries, _ = _COUNTS.unpack_from(params)
        _, sq_tail, sq_mask, _, _, _, sq_array = _SQ_OFFSETS.unpack_from(params, _SQ_OFF)
        cq_head, cq_tail, cq_mask, _, _, cqes = _CQ_OFFSETS.unpack_from(params, _CQ_OFF)
        size = max(sq_array + sq_entries * 4, cqes + cq_entries * _CQE.size) + 3 & ~3  # IORING_FEAT_SINGLE_MMAP
        rings = self._mapped(size, IORING_OFF_SQ_RING)
        self._sqes = self._mapped(sq_entries * _SQE_SIZE, IORING_OFF_SQES)
        self._numbers = memoryview(rings).cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = sq_tail // 4, cq_head // 4, cq_tail // 4
        self._sq_mask, self._cq_mask = self._numbers[sq_mask // 4], self._numbers[cq_mask // 4]
        self._rings, self._cqes = rings, cqes
        for index in range(sq_entries):
            self._numbers[sq_array // 4 + index] = index

    def _mapped(self, size: int, offset: int) -> mmap.mmap:
        mapped = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, offset=offset)
        self._maps.append(mapped)
        mapped.madvise(mmap.MADV_DONTFORK)  # a child with the mapping would keep the ring and its files open
        return mapped

    def prepare(
        self, opcode: int, fd: int, address: int, length: int, user_data: int, command: int = 0, commit: int = 0,
        queue: int = 0,
    ) -> None:  # fmt: skip
        """Add an entry for the next ``enter``. command, commit, queue: of IORING_OP_URING_CMD on /dev/fuse."""
        while self.pending > self._sq_mask:
            self.enter(0)
        numbers, at = self._numbers, self._sq_tail
        tail = numbers[at]
        _SQE.pack_into(
            self._sqes, (tail & self._sq_mask) * _SQE_SIZE,
            opcode, 0, 0, fd, command, 0, address, length, 0, user_data, 0, 0, commit, queue,
        )  # fmt: skip
        numbers[at] = (tail + 1) & 0xFFFFFFFF
        self.pending += 1

    def enter(self, wanted: int) -> None:
        """io_uring_enter(2): submit the prepared entries and wait for WANTED completions. May return early."""
        done = self._enter(_ENTER, self.fd, self.pending, wanted, IORING_ENTER_GETEVENTS, None, 0)
        if done >= 0:
            self.pending -= done
            return
        error = _fail("io_uring_enter")
        if error.errno != errno.EINTR:
            raise error

    def completions(self) -> list[tuple[int, int]]:
        """(user_data, res) of the completions since the last call; a negative res is an errno."""
        numbers = self._numbers
        head, tail = numbers[self._cq_head], numbers[self._cq_tail]
        found = []
        while head != tail:
            data, result, _ = _unpack_cqe(self._rings, self._cqes + (head & self._cq_mask) * 16)
            found.append((data, result))
            head = (head + 1) & 0xFFFFFFFF
        numbers[self._cq_head] = head
        return found

    def close(self) -> None:
        """Close the ring. The kernel cancels pending requests and releases their files."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        if self._maps:
            self._numbers.release()
            for mapped in self._maps:
                mapped.close()


_ENTER = _long(_SYS_IO_URING_ENTER)
_unpack_cqe = _CQE.unpack_from
