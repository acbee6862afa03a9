"""What can be seen of a session's process; its keyring, personality and secure bits."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from cntr.linux import process, syscalls
from tests.nest.busybox import REPOSITORY

SHOW = """
import os, sys
from cntr.linux import process, procfs
memory = process.command_line_memory(procfs.read("/proc/self/stat"))
{before}
if os.fork() == 0:  # the addresses hold across it
    process.wipe_command_line(memory)
    sys.stdout.buffer.write(open("/proc/self/cmdline", "rb").read().strip(b"\\0") + b"|")
    sys.stdout.buffer.write(open("/proc/self/environ", "rb").read().strip(b"\\0") + b"|")
    sys.stdout.flush()
    assert os.environ["SECRET"] == "hidden", "Python keeps a copy"
    os.execve("/bin/sh", ["sh", "-c", "echo $SECRET $OTHER"], {{"OTHER": "new"}})
os.wait()
"""


@pytest.mark.parametrize(
    "before", ["", "import _ctypes; from cntr.linux.syscalls import set_process_name; set_process_name('x')"]
)
def test_the_command_line_and_the_environment_can_be_wiped(before):
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(before=before), "-e", "TOKEN=secret" * 100],
        env={**os.environ, "SECRET": "hidden"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"cntr||new\n"


def test_a_new_session_keyring_is_empty_and_nobody_elses():
    def keys() -> str:
        return pathlib.Path("/proc/keys").read_text()

    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel was built without keys (CONFIG_KEYS)")
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            process.join_new_session_keyring()
            first = [line for line in keys().splitlines() if "_ses" in line]
            process.join_new_session_keyring()
            second = [line for line in keys().splitlines() if "_ses" in line]
            os.write(writing, b"ok" if first != second and second else repr((first, second)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1000) == b"ok"
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(os.geteuid() != 0, reason="secure bits need CAP_SETPCAP")
def test_secure_bits_and_personality():
    if (pid := os.fork()) == 0:
        code = 1
        try:
            wanted = process.SECBIT_NO_SETUID_FIXUP | process.SECBIT_NO_SETUID_FIXUP_LOCKED
            process.set_securebits(wanted)
            assert process.securebits() == wanted
            held = syscalls.permitted_capabilities()
            os.setresuid(1000, 1000, 1000)
            assert syscalls.permitted_capabilities() == held
            process.set_personality(0x0040000)  # ADDR_NO_RANDOMIZE
            assert pathlib.Path("/proc/self/personality").read_text().strip() == "00040000"
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


FORKING = """
import _thread, os, sys, time
from cntr.linux import syscalls
sys.setswitchinterval(1e-6)

def start_others():
    while True:
        _thread.start_new_thread(lambda: None, ())
        time.sleep(0)

_thread.start_new_thread(start_others, ())
end = time.monotonic() + 1
for number in range(10_000):
    pid = syscalls.fork()
    if not pid:
        for _ in range(50):
            pass  # where the child would wait for the thread that has asked for the interpreter lock
        os._exit(number % 7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == number % 7
    if time.monotonic() > end:
        break
os.write(1, b"forked")
os._exit(0)
"""


def test_a_fork_beside_threads_that_begin_and_end():
    """The interpreter's hooks take a lock, and in between a thread that ended waited for it, holding the one that all need."""
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.communicate(timeout=60) == (b"forked", b"")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child that hangs outlives its parent
        process.communicate()
