"""What an image does whose program `cntr slim` runs by an OCI runtime: devices, keys, output and answers without end, a killed cntr."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import secrets
import shutil
import socket
import stat
import subprocess
import threading
import time

import pytest

from cntr.linux import syscalls
from cntr.slim import commands, exercise, record
from cntr.slim.output import KEPT, BoundedOutput
from testkit import processes
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import BUSYBOX, CNTR, REPOSITORY, run

ADD_KEY, KEYCTL, USER_KEYRING, SEARCH, UNLINK = 248, 250, -4, 10, 9  # x86_64; keyutils(7)
FUSE = os.makedev(10, 229)  # a device that no container has unasked
# crun knows version 2 of cgroups only
VERSION_2 = 'umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
LOOK = """
mknod /made c 10 229
for node in /made /laid; do (: <$node) && printf 'opened %s ' $node; done
/accomplice keys ticket
exit 3
"""


@pytest.fixture
def image(accomplice, place) -> pathlib.Path:
    return made_image(accomplice, place)


def made_image(accomplice: str, place: pathlib.Path) -> pathlib.Path:
    """A root directory with a shell, the accomplice and a device node."""
    root = place / "root"
    for directory in ("bin", "etc", "proc"):
        (root / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "mknod", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    shutil.copy(accomplice, root / "accomplice")
    (root / "look").write_text(LOOK)
    os.mknod(root / "laid", stat.S_IFCHR | 0o666, FUSE)
    return root


def words_of(root: pathlib.Path, program: str, *more: str) -> list[str]:
    return ["slim", f"dir:{root}", "--entrypoint", program, "-o", f"{root.parent}/slim.tar", *more]


@contextlib.contextmanager
def users_key(secret: str):
    """A key in the keyring of the caller's user, as of Kerberos or of an encrypted directory."""
    libc = ctypes.CDLL(None)
    if (
        os.uname().machine != "x86_64"
        or libc.syscall(ADD_KEY, b"user", b"ticket", secret.encode(), len(secret), USER_KEYRING) < 0
    ):
        pytest.skip("no keys can be made here")
    key = libc.syscall(KEYCTL, SEARCH, USER_KEYRING, b"user", b"ticket", 0)
    try:
        yield
    finally:
        libc.syscall(KEYCTL, UNLINK, key, USER_KEYRING)


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_its_program_has_the_limits_of_an_engines(image, tmp_path, runtime):
    """No device but the usual, whether it came with the image or is made; no key of the caller's; no namespace of its own."""
    kit.need(runtime)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse here")
    (tmp_path / runtime).symlink_to(shutil.which(runtime))
    prefix = ["unshare", "-m", "sh", "-c", VERSION_2, "sh"] if runtime == "crun" else []
    secret = secrets.token_hex(8)
    with users_key(secret):
        words = [*prefix, "env", f"PATH={tmp_path}", *CNTR, *words_of(image, "/bin/sh /look")]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": REPOSITORY}, capture_output=True, text=True, timeout=60, check=False
        )
    if "cgroup2" in done.stderr:
        pytest.skip("version 2 of cgroups can't be mounted here")
    assert done.returncode == 125, done
    assert "no key: Operation not permitted" in done.stderr, done
    assert secret not in done.stderr
    assert "opened" not in done.stderr


def test_output_without_end_is_read_and_cut():
    """Neither memory nor a pipe fills up."""
    output = BoundedOutput()
    try:
        for _ in range(1000):
            os.write(output.fd, b"x" * KEPT)
        os.write(output.fd, b"the end")
        output.handed_over()
        text = output.end(complete=True)
        assert (len(text), text[-8:]) == (KEPT, "xthe end")
    finally:
        output.close()
    done = commands.end_of(["sh", "-c", "head -c 9000000 /dev/zero; echo the end"], 30)
    assert (len(done.stdout), done.stdout[-8:]) == (commands.KEPT, b"the end\n")
    with pytest.raises(subprocess.TimeoutExpired):
        commands.end_of(["cat", "/dev/zero"], 0.5)


def test_an_answer_that_comes_byte_by_byte():
    """The time to answer is for the whole answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                client.sendall(b"x")
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()
    with listener, contextlib.suppress(OSError, exercise.http.client.HTTPException):
        exercise._get(exercise.Http(str(listener.getsockname()[1])), "/", time.monotonic() + 0.5)


@pytest.mark.parametrize("program", ["/runc", "runc", "/crun"])
def test_its_program_has_the_runtimes_name(image, program):
    """It has begun all the same."""
    kit.need("runc")
    (image / "loot").touch()
    shutil.copy(image / "accomplice", image / program.lstrip("/"))
    words = words_of(image, f"{program} hunt - - - i", "-e", "PATH=/", "--for", "1s", "--verify", "none")
    done = run(*words, timeout=60)
    assert done.returncode == 0, done


def test_its_program_ends_with_a_killed_cntr(image):
    kit.need("runc")
    process = subprocess.Popen(
        [*CNTR, *words_of(image, "/bin/sleep 60.0477", "--for", "60s")],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: processes.running("/bin/sleep", "60.0477"), "it runs", seconds=60)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not processes.running("/bin/sleep", "60.0477"), "it has ended")
    cgroups = pathlib.Path("/sys/fs/cgroup")
    names = f"cntr-slim-{process.pid}-*"
    wait_until(lambda: not [*cgroups.glob(names), *cgroups.glob(f"*/{names}")], "its cgroups are gone")


@pytest.mark.parametrize("how", ["long", "many"])
def test_a_recording_continues_whatever_is_opened(tmp_path, monkeypatch, how):
    """A path of more than a page has no name in /proc, and names can be made up without end: what came is kept, and it is said."""
    monkeypatch.setattr(record, "MOST_PATHS", 20)
    root = tmp_path / "root"
    root.mkdir()
    syscalls.mount("tmpfs", str(root), "tmpfs", 0)
    recorder, fd = record.Recorder(), os.open(root, os.O_RDONLY)
    try:
        recorder.arm(fd)
        recorder._engines = []  # what opens is this process
        (root / "first").touch()
        for number in range(30):
            os.close(os.open(f"made{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd)) if how == "many" else None
            os.mkdir("d" * 200, dir_fd=fd)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        (root / "first").touch()
        found = recorder.close()
        assert found.lost
        assert f"{root}/first" in found.kinds
        assert len(found) <= 20
        assert not recorder._thread.is_alive()
    finally:
        os.close(fd)
        syscalls.umount(str(root), syscalls.MNT_DETACH)
