"""What the attacks share: a hostile container, the host's secrets, and proofs that one was read.

Every secret can be read on the host (``Canary.check``), and every check that one was *not* read has a control in which
it is (a tool that obeys the variable, a mutated cntr).
"""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from testkit.container import enter_root
from testkit.waiting import wait_until
from tests.nest.busybox import BusyboxContainer, run

TRANSPORTS = ("mount", "fuse")
SHADOW = 42  # the group that may read /etc/shadow in Debian
PROOF = "THE-PROOF-RAN"
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Canary:
    """Files of the host that no session may reveal. Each holds ``secret`` and what kind of file it is.

    directory: of the host's root file system, open to all; path: root's alone (0600), beside it ``.public`` (0644, to be written to),
    ``.group`` (0640, shadow's), ``.user`` (0600, uid 1000's), a directory ``.open`` that every user may write to, and ``proof``, root's program.
    """

    directory: pathlib.Path
    secret: str

    @property
    def path(self) -> str:
        return str(self.directory / "canary")

    def file(self, kind: str) -> str:
        return f"{self.path}.{kind}"

    def check(self) -> None:
        """Assert that root on the host can read the secrets."""
        assert self.secret in pathlib.Path(self.path).read_text()

    def untouched(self) -> None:
        """Assert that nothing was written to the host."""
        assert pathlib.Path(self.file("public")).read_text() == f"{self.secret} public\n"
        assert os.listdir(self.file("open")) == []
        assert sorted(os.listdir(self.directory)) == sorted(
            ["canary", *(f"canary.{kind}" for kind in ("public", "group", "user", "open")), "proof"]
        )


@contextmanager
def canary(accomplice: str, place: str = "/opt") -> Iterator[Canary]:
    """Create the secrets below PLACE for the block."""
    directory = pathlib.Path(place, f"cntr-attacks-{os.getpid()}-{secrets.token_hex(4)}")
    directory.mkdir(mode=0o755)
    try:
        laid = Canary(directory, secrets.token_hex(16))
        for name, mode, uid, gid in (
            ("canary", 0o600, 0, 0),
            ("canary.public", 0o644, 0, 0),
            ("canary.group", 0o640, 0, SHADOW),
            ("canary.user", 0o600, 1000, 1000),
        ):
            file = directory / name
            file.write_text(f"{laid.secret} {name.partition('.')[2] or 'root'}\n")
            file.chmod(mode)
            os.chown(file, uid, gid)
        (directory / "canary.open").mkdir()
        (directory / "canary.open").chmod(0o1777)
        shutil.copy(accomplice, directory / "proof")
        (directory / "proof").chmod(0o700)
        laid.check()
        yield laid
    finally:
        shutil.rmtree(directory)


class Hostile(BusyboxContainer):
    """A container whose first process is the accomplice or another program, in a directory of the test's."""

    @property
    def loot(self) -> list[str]:
        """The accomplice's findings, each once."""
        try:
            return sorted(set((self.root / "loot").read_text(errors="replace").splitlines()) - {"ready"})
        except FileNotFoundError:
            return []

    def proofs(self, secret: str) -> list[str]:
        """The lines with a secret of the host, or about a change to it."""
        return [line for line in self.loot if secret in line or line.startswith(("canary", "written", PROOF))]

    def write(self, path: str, text: str | bytes, mode: int = 0o755) -> pathlib.Path:
        """Write a file in its root, as if it came with the image."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)
        return file

    def inside(self, path: str) -> pathlib.Path:
        """PATH as the running container sees it, with its mounts (/dev, tmpfs)."""
        return pathlib.Path(f"/proc/{self.pid}/root/{path.lstrip('/')}")


def hostile(
    tmp_path: pathlib.Path, accomplice: str, *argv: str, root: pathlib.Path | None = None, **more: object
) -> Hostile:
    """A container for ``with``. argv: the accomplice's, as the first process; empty: it only waits."""
    root = root or tmp_path / "root"
    root.mkdir(exist_ok=True)
    loot = root / "loot"
    loot.touch()
    loot.chmod(0o666)
    programs: dict[str, str] = {"/accomplice": accomplice, **more.pop("programs", {})}  # type: ignore[dict-item]
    files: dict[str, str] = {
        "/etc/passwd": "root:x:0:0::/root:/bin/sh\nslim:x:1000:1000::/:/bin/sh\n",
        **more.pop("files", {}),
    }  # type: ignore[dict-item]
    if argv:
        more["argv"] = ["/accomplice", *argv]
    return Hostile(root=root, programs=programs, files=files, **more)  # type: ignore[arg-type]


def each(values: Sequence[object], few: int = 2) -> list[tuple[str, object]]:
    """(transport, value) pairs: all VALUES on the mount transport, the first FEW on the other, which runs the same
    code.
    """
    return [("mount", value) for value in values] + [("fuse", value) for value in list(values)[:few]]


def await_ready(container: BusyboxContainer) -> None:
    """Wait until the accomplice is looking."""
    wait_until(lambda: "ready\n" in (container.root / "loot").read_text(errors="replace"), "the accomplice is ready")


def attach(
    container: BusyboxContainer, transport: str, *flags: str, command: Sequence[str] = ("true",), **more: object
):
    """Run ``cntr attach`` with a transport."""
    return run("attach", str(container.pid), "--transport", transport, *flags, "--", *command, **more)  # type: ignore[arg-type]


def in_session(container: BusyboxContainer, transport: str, script: str, *flags: str, **more: object) -> str:
    """The output of the tools' bash in a session, both streams, whatever its status."""
    done = attach(container, transport, *flags, command=["/bin/bash", "-c", script], **more)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode not in (125, 126, 127), done
    return done.stdout + done.stderr


def need(*commands: str) -> None:
    """Skip, naming what is missing."""
    import pytest

    missing = [command for command in commands if not shutil.which(command)]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")


def compiled(directory: pathlib.Path) -> str:
    """The accomplice, static, so that it runs in any container."""
    need("gcc")
    program = str(directory / "accomplice")
    source = str(pathlib.Path(__file__).with_name("accomplice.c"))
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-static", "-o", program, source], check=True)
    return program


FIRST_ID = 100_000


class Remapped(Hostile):
    """A container in its own user namespace: ids 0-65535 there are 100000-165535 on the host.

    maker: the uid on the host that creates the namespace, and so owns it.
    """

    maker = 0

    def _start(self, read: int, write: int) -> None:
        from cntr.linux import syscalls

        told, tell = os.pipe()
        done, mapped = os.pipe()
        starter = os.getpid()
        if os.fork() == 0:  # stays outside, where the maps may be written
            os.close(read)
            os.close(write)
            os.read(told, 1)
            for kind in ("uid", "gid"):
                pathlib.Path(f"/proc/{starter}/{kind}_map").write_text(f"0 {FIRST_ID} 65536\n")
            os._exit(os.write(mapped, b"m") - 1)
        if self.maker:
            os.setresgid(self.maker, self.maker, self.maker)
            os.setresuid(self.maker, self.maker, self.maker)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(tell, b"n")
        os.read(done, 1)
        for fd in (told, tell, done, mapped):
            os.close(fd)
        os.wait()
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        super()._start(read, write)

    def _pivot(self) -> None:
        from cntr.linux import syscalls

        root = str(self.root)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(root, root, None, syscalls.MS_BIND | syscalls.MS_REC)
        syscalls.mount("proc", f"{root}/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
        syscalls.mount("tmpfs", f"{root}/dev", "tmpfs", syscalls.MS_NOSUID, "mode=755,size=64k")
        for device in ("null", "zero", "full", "random", "urandom", "tty"):
            pathlib.Path(f"{root}/dev/{device}").touch()
            syscalls.mount(f"/dev/{device}", f"{root}/dev/{device}", None, syscalls.MS_BIND)
        os.mkdir(f"{root}/dev/pts")
        syscalls.mount("devpts", f"{root}/dev/pts", "devpts", syscalls.MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620")
        os.symlink("pts/ptmx", f"{root}/dev/ptmx")
        syscalls.mount("sysfs", f"{root}/sys", "sysfs", syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV)
        enter_root(root)


def remapped(place: pathlib.Path, accomplice: str, *argv: str, **more: object) -> Remapped:
    """``hostile`` in a user namespace of its own; its files belong to its root."""
    container = hostile(place, accomplice, *argv, **more)
    for path in (container.root, container.root / "loot"):
        os.chown(path, FIRST_ID, FIRST_ID)
    container.__class__ = Remapped
    return container  # type: ignore[return-value]
