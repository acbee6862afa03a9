"""The container's seccomp filters: read from its process, installed for the command of ``cntr exec`` (seccomp(2)).

An engine's own exec installs the container's filters for the program it runs. cntr reads them from the running
process: engines have no common interface for them, and the process has also the filters that were added after the
start.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import errno
import os
import select
import time

from cntr.errors import CntrError, printable
from cntr.linux import procfs, seccomp, syscalls, tracing
from cntr.linux.numbers import UNAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

PATIENCE_SECONDS = (
    3.0  # in total; a stop takes far less than a millisecond unless a thread is in an uninterruptible wait
)
TRACER_SECONDS = 0.5  # to wait for one tracer; other cntrs, which read the filters too, take turns with us
LOOKS = 10  # looks that must show the same tracer, too: on a busy machine each may take longer than that
THREAD_SECONDS = 0.5  # for one thread to stop, before the next is tried
BUSY_SECONDS = (
    30.0  # seconds for a thread that only waits for a processor: it is throttled, or the machine is overloaded
)
WITHOUT = "--no-seccomp goes without it: then the program may make system calls that the container's may not"
STRICT, FILTER = 1, 2  # /proc/PID/status, Seccomp
_SYS_ADMIN = 1 << 21
_EMEDIUMTYPE = 124

# x86_64: the calls that fail with EINTR when their thread is stopped and continued (signal(7)): epoll_wait semop
# rt_sigtimedwait io_getevents semtimedop epoll_pwait io_pgetevents epoll_pwait2. The kernel restarts all others.
_INTERRUPTED = frozenset((232, 65, 128, 208, 220, 281, 333, 441))
_RAX, _ORIG_RAX, _ERESTARTNOHAND = 10, 15, 514


class Filter:
    """One filter: its instructions, and the SECCOMP_FILTER_FLAG_* it was installed with, if the kernel tells."""

    __slots__ = ("flags", "program")

    def __init__(self, program: bytes, flags: int = 0) -> None:
        """program: instructions of 8 bytes each."""
        self.program, self.flags = program, flags

    def asks_a_listener(self) -> bool:
        """Whether the filter passes calls to a supervisor process of the engine (SECCOMP_RET_USER_NOTIF). Without
        one they fail with ENOSYS.
        """
        size, order = seccomp.INSTRUCTION, _byteorder()
        for at in range(0, len(self.program), size):
            code = int.from_bytes(self.program[at : at + 2], order)
            value = int.from_bytes(self.program[at + 4 : at + 8], order)
            if code == seccomp.BPF_RET_K and value & seccomp.SECCOMP_RET_ACTION_FULL == seccomp.SECCOMP_RET_USER_NOTIF:
                return True
        return False


def obstacle() -> str:
    """Why this process may not read another one's filters, "" if it may (kernel/seccomp.c, get_nth_filter)."""
    own = procfs.status(procfs.read("/proc/self/status"))
    if own.get("Seccomp", "0") != "0":
        return "cntr runs under a seccomp filter itself, and the kernel lets only a process without one read another's"
    if not int(own["CapEff"], 16) & _SYS_ADMIN:
        return "only root (CAP_SYS_ADMIN in the first user namespace) may read a process's seccomp filters"
    return ""


def filters_of(pid: int, label: str) -> list[Filter]:
    """The filters of a process, oldest first; empty if it has none. Raises CntrError, or ProcessLookupError if PID
    has ended.

    The process is stopped for about ten microseconds and notices nothing; a stopped one stays stopped. A child does
    the tracing: however a tracer ends, the kernel detaches it.
    """
    modes = {_mode(pid, tid) for tid in _threads(pid)}
    if modes == {0}:
        return []
    if STRICT in modes:
        raise CntrError(f"{label}: pid {pid} is in seccomp's strict mode, which forbids execve(2)", WITHOUT)
    why = obstacle()
    if why:
        raise CntrError(f"{label}: its seccomp filter cannot be taken over: {why}", WITHOUT)
    answer = _in_turn(pid)
    if answer[:1] == b"F":
        return _unpack(answer[1:])
    number, _, step = answer[1:].partition(b" ")
    if int(number or 0) == errno.ESRCH:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    raise CntrError(f"{label}: its seccomp filter cannot be read: {_reason(pid, int(number or 0), step)}", WITHOUT)


def _threads(pid: int) -> list[int]:
    """The ids of the living threads, the leader first. Raises ProcessLookupError if there is none."""
    try:
        found = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        found = []
    alive = [tid for tid in found if _mode(pid, tid) >= 0]
    if not alive:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return alive


def _mode(pid: int, tid: int) -> int:
    """The thread's mode in /proc/PID/status, -1 if it has ended."""
    try:
        status = procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))
    except OSError:
        return -1
    return -1 if status.get("State", "Z")[0] in "ZX" else int(status.get("Seccomp", "0"))


def _in_turn(pid: int) -> bytes:
    """The answer of ``_ask``. A process has one tracer at a time: ask again while another one comes and goes."""
    begun = since = time.monotonic()
    tracer, looks = "", 0
    while True:
        answer = _ask(pid)
        now = time.monotonic()
        if not answer.startswith(b"E%d seize" % errno.EPERM) or now - begun > BUSY_SECONDS:
            return answer
        if (found := _tracer(pid)) != tracer:
            tracer, since, looks = found, now, 0
        looks += 1
        # A debugger; or no tracer at all: then a security module refuses.
        if looks > LOOKS and now - since > (PATIENCE_SECONDS if _is_busy(int(found), pid) else TRACER_SECONDS):
            return answer
        time.sleep(0.002)


def _tracer(pid: int) -> str:
    """The pid of the process's tracer, 0 if there is none."""
    try:
        return procfs.status(procfs.read(f"/proc/{pid}/status")).get("TracerPid", "0")
    except OSError:
        return "0"


def _ask(pid: int) -> bytes:
    """The answer of the tracer, a child: F and the filters, or E, an errno and the step."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = syscalls.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if child == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(reading)
            answer = _trace(pid)
            while answer:
                answer = answer[os.write(writing, answer) :]
        finally:
            os._exit(0)
    os.close(writing)
    poll, answer = select.poll(), b""
    poll.register(reading, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_SECONDS
    last = deadline + BUSY_SECONDS
    try:
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000) or (
            time.monotonic() < last and _is_busy(child, pid)
        ):
            if not poll.poll(0):
                deadline = time.monotonic() + THREAD_SECONDS
                continue
            chunk = os.read(reading, 1 << 16)
            if not chunk:
                return answer or b"E0 tracer"
            answer += chunk
        return b"E%d stop" % errno.ETIMEDOUT
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _trace(pid: int) -> bytes:
    """In the tracer: read the filters from the first thread that stops."""
    step, answer = "find", b""
    try:
        for tid in _threads(pid):
            if not _mode(pid, tid):
                continue
            step = "seize"
            try:
                tracing.ptrace_seize(tid)
            except PermissionError:
                answer = answer or b"E%d seize" % errno.EPERM  # it may be traced by itself, as by `strace -p`
                continue
            tracing.ptrace_interrupt(tid)
            step = "stop"
            if not _stopped(tid):
                answer = b"E%d stop" % errno.ETIMEDOUT  # it is detached when this process ends
                continue
            try:
                step = "read"
                answer = b"F" + b"".join(_pack(filter) for filter in _filters(tid))
                _begin_again(tid)
            finally:
                tracing.ptrace_detach(tid)
            return answer
    except OSError as error:
        return b"E%d %s" % (error.errno or 0, step.encode())
    return answer or b"E%d find" % errno.ESRCH


def _stopped(tid: int) -> bool:
    """Wait until the thread has stopped; False after THREAD_SECONDS. Raises ProcessLookupError if it has ended."""
    deadline, pause = time.monotonic() + THREAD_SECONDS, 0.00002
    while True:
        found, status = os.waitpid(tid, os.WNOHANG | tracing.WALL)
        if found:
            if os.WIFSTOPPED(status):
                return True
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        now = time.monotonic()
        if now > deadline and not (now < deadline + BUSY_SECONDS and _wants_processor(f"/proc/{tid}/stat")):
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


def _is_busy(tracer: int, pid: int) -> bool:
    """Whether the tracer, or a thread of the process, is only waiting for a processor or has just been stopped."""
    try:
        threads = [f"/proc/{pid}/task/{tid}/stat" for tid in _threads(pid)]
    except ProcessLookupError:
        threads = []  # the tracer will notice that
    return any(map(_wants_processor, [f"/proc/{tracer}/stat", *threads]))


def _wants_processor(stat: str) -> bool:
    try:
        return procfs.read(stat).rpartition(")")[2].split()[0] in "Rt"
    except (OSError, IndexError):
        return False


def _filters(tid: int) -> list[Filter]:
    """All filters of a stopped thread, oldest first."""
    found: list[Filter] = []
    while (program := tracing.get_filter(tid, len(found))) is not None:
        try:
            flags = tracing.filter_flags(tid, len(found)) & seccomp.SECCOMP_FILTER_FLAG_LOG
        except OSError:
            flags = 0  # an old kernel; the only flag lost is the one for logging denied calls
        found.append(Filter(program, flags))
    return found


def _begin_again(tid: int) -> None:
    """Restart the call that our stop made fail with EINTR: programs that never handle signals do not expect that.

    On x86 the kernel decides after the stop whether to restart a call (arch_do_signal_or_restart). On other
    machines it decides before: a program in epoll_wait(2) sees an EINTR, as with strace -p.
    """
    if UNAME != "x86_64":
        return
    data = bytearray(tracing.registers(tid))
    words = [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, len(data), 8)]
    if len(words) > _ORIG_RAX and words[_ORIG_RAX] in _INTERRUPTED and words[_RAX] == -errno.EINTR:
        data[_RAX * 8 : _RAX * 8 + 8] = (-_ERESTARTNOHAND).to_bytes(8, "little", signed=True)
        tracing.set_registers(tid, bytes(data))


def _reason(pid: int, number: int, step: bytes) -> str:
    """The reason in words."""
    if step == b"seize":
        try:
            if (tracer := _tracer(pid)) != "0":
                return (
                    f"the process is traced by pid {tracer} ({printable(procfs.read(f'/proc/{tracer}/comm').strip())})"
                )
        except OSError:
            pass
        return f"pid {pid} may not be traced: {os.strerror(number)} (a security module, or kernel.yama.ptrace_scope 3)"
    if step == b"stop":
        return f"pid {pid} did not stop within {PATIENCE_SECONDS:.0f} s: it is paused, waits for a device, or gets no processor"
    if number == errno.EACCES:
        return "the kernel allows it only to CAP_SYS_ADMIN of the first user namespace, in a process without a filter"
    if number in (errno.EINVAL, errno.EIO):
        return "this kernel was built without CONFIG_CHECKPOINT_RESTORE"
    if number == _EMEDIUMTYPE:
        return "the kernel doesn't keep this one's text"
    return f"{step.decode()}: {os.strerror(number)}"


def _pack(filter: Filter) -> bytes:
    return filter.flags.to_bytes(4, "little") + len(filter.program).to_bytes(4, "little") + filter.program


def _unpack(data: bytes) -> list[Filter]:
    found = []
    while data:
        end = 8 + int.from_bytes(data[4:8], "little")
        found.append(Filter(data[8:end], int.from_bytes(data[:4], "little")))
        data = data[end:]
    return found


def _byteorder() -> Literal["little", "big"]:
    import sys

    return sys.byteorder
