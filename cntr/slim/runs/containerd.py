"""containerd, through ``ctr``. $CONTAINERD_ADDRESS and $CONTAINERD_NAMESPACE select it, as for ctr itself."""

from __future__ import annotations

import hashlib
import os
import secrets
import time

from cntr.engines import unixhttp
from cntr.errors import CntrError, printable
from cntr.linux import procfs
from cntr.linux.numbers import UNAME
from cntr.slim import commands
from cntr.slim.leftovers import Guard
from cntr.slim.runs import MACHINES, Image, MountWatch, Running, RunOptions, wait_for_pid
from cntr.slim.runs.command import feed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

NAME = "containerd"
CLI = ["ctr"]


def _address() -> str:
    return os.environ.get("CONTAINERD_ADDRESS") or "/run/containerd/containerd.sock"


def _rows() -> dict[str, str]:
    """The images: name → digest of its manifest or index."""
    if not os.path.exists(_address()):
        return {}
    lines = commands.run([*CLI, "image", "ls"]).splitlines()[1:]
    return {fields[0]: fields[2] for fields in (line.split() for line in lines) if len(fields) > 2}


def _document(digest: str) -> dict[str, Any]:
    found = commands.load([*CLI, "content", "get", digest])
    return dict(found) if isinstance(found, dict) else {}


def image(reference: str) -> Image | None:
    """The image of that name; a short name is Docker Hub's."""
    from cntr.slim import writer

    rows = _rows()
    name = next((one for one in (reference, writer.full(reference)) if one in rows), "")
    if not name:
        return None
    manifest = _document(rows[name])
    if manifest.get("manifests"):
        manifest = _document(_of_this_machine(name, manifest["manifests"]))
    config = _document(str(manifest["config"]["digest"]))
    return Image(NAME, name, name, config, _layers(name, config))


def _of_this_machine(name: str, manifests: list[dict[str, Any]]) -> str:
    machine = MACHINES.get(UNAME, UNAME)
    for row in manifests:
        platform = row.get("platform") or {}
        if platform.get("architecture", machine) == machine and platform.get("os", "linux") == "linux":
            return str(row["digest"])
    raise CntrError(f"{printable(name)} has nothing for {machine}", "slim an image on a machine that can run it")


def _layers(name: str, config: dict[str, Any]) -> list[str]:
    """The layers' directories, lowest first, as a view of the image's snapshot would mount them."""
    chain = ""
    for diff_id in config["rootfs"]["diff_ids"]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else str(diff_id)
    key = f"cntr-slim-{os.getpid()}-{secrets.token_hex(3)}"
    try:  # requested together: containerd may collect an unleased view before the next call
        mounts = commands.load([*CLI, "snapshot", "view", "--mounts", key, chain])
    except commands.Failed:
        return []  # not unpacked by the overlayfs snapshotter
    try:
        commands.run([*CLI, "snapshot", "rm", key])
    except commands.Failed:
        if key in commands.run([*CLI, "snapshot", "ls"]):
            raise
    for mount in mounts:
        for option in mount.get("Options") or []:
            if option.startswith("lowerdir="):
                return list(option.partition("=")[2].split(":")[::-1])
        if mount.get("Type") == "bind":
            return [str(mount["Source"])]
    return []


def container(name: str) -> tuple[str, dict[str, Any], int] | None:
    """(image, settings, pid) of a container."""
    if not os.path.exists(_address()):
        return None
    try:
        row = commands.load([*CLI, "container", "info", name])
    except commands.Failed:
        return None
    process = ((row.get("Spec") or {}).get("process")) or {}
    settings: dict[str, Any] = {
        "Entrypoint": [],
        "Cmd": process.get("args"),
        "Env": process.get("env"),
        "WorkingDir": process.get("cwd"),
    }
    return str(row.get("Image") or ""), settings, _task(name)[0]


def _task(name: str) -> tuple[int, str]:
    """(pid, status) of a container's task; (0, "") if there is none."""
    for line in commands.run([*CLI, "task", "ls"]).splitlines()[1:]:
        fields = line.split()
        if len(fields) > 2 and fields[0] == name:
            return int(fields[1]), fields[2]
    return 0, ""


class ContainerdRunning(Running):
    """A container started by ctr."""

    def __init__(self, name: str, guard: Guard, log: str) -> None:
        """log: file with its output."""
        self.name, self.guard, self.path = name, guard, log
        self._status: int | None = None

    def exited(self) -> int | None:
        """Its exit status: ctr exits with it when the task is deleted."""
        if self._status is None and self.pid and not _lives(self.pid):
            try:
                commands.run([*CLI, "task", "delete", self.name])
                self._status = 0
            except commands.Failed as error:
                self._status = error.status if error.status > 0 else 1
        return self._status

    def log(self) -> str:
        """The end of the file."""
        try:
            with open(self.path, "rb") as stream:
                return stream.read()[-(1 << 16) :].decode("utf-8", "replace")
        except OSError:
            return ""

    def exec(self, words: list[str], seconds: float) -> str:
        """``ctr task exec``."""
        id = f"e{secrets.token_hex(4)}"
        return commands.run([*CLI, "task", "exec", "--exec-id", id, self.name, *words], seconds=seconds, both=True)

    def stop(self) -> None:
        """Kill the task, remove the container."""
        patience = self.patience(self.stop_signal)
        for name, seconds in ((self.stop_signal, patience), ("SIGKILL", 5.0)):
            if self.exited() is None and seconds:
                try:
                    commands.run([*CLI, "task", "kill", "-s", name, self.name])
                except commands.Failed:
                    break
                end = time.monotonic() + seconds
                while _lives(self.pid) and time.monotonic() < end:
                    time.sleep(0.01)
        self.guard.undo(self.name)
        self.guard.undo(os.path.dirname(self.path))


def _lives(pid: int) -> bool:
    try:
        return procfs.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start(image: str, options: RunOptions, guard: Guard, arm: Callable[[int], None] | None) -> Running:
    """``ctr container create``, a watch for its root's mount, ``ctr task start``."""
    name = f"cntr-slim-{os.getpid()}-{secrets.token_hex(3)}"
    running = ContainerdRunning(name, guard, f"{guard.directory()}/log")
    running.stop_signal = options.stop_signal
    if options.network not in ("none", "host"):
        raise CntrError(
            f"--network {printable(options.network)}: ctr has none and host", "use Docker or Podman for others"
        )
    flags = ["--net-host"] if options.network == "host" else []
    flags += [word for value in options.environment for word in ("--env", value)]
    for volume in options.volumes:
        source, _, rest = volume.partition(":")
        place, _, mode = rest.partition(":")
        flags += ["--mount", f"type=bind,src={source},dst={place},options=rbind:{'ro' if mode == 'ro' else 'rw'}"]
    words = [*options.entrypoint, *options.command]
    guard.add(name, ["sh", "-c", 'ctr task rm -f "$1"; ctr container rm "$1"', "sh", name])
    commands.run([*CLI, "container", "create", *flags, image, name, *words])
    stream = unixhttp.connect(_address(), time.monotonic() + 10)
    owner = unixhttp.peer(stream)[0]
    stream.close()
    watch = MountWatch(f"/{name}/rootfs", owner, arm) if arm else None
    try:
        commands.run([*CLI, "task", "start", "-d", "--log-uri", f"file://{running.path}", name])
    finally:
        if watch is not None:
            watch.close()
    running.pid = wait_for_pid(lambda: _task(name)[0], running.exited)
    return running


def load(write: Callable[[IO[bytes], str], None], reference: str, id: str) -> str:
    """``ctr image import``; return the image's name: images without one are not kept."""
    feed([*CLI, "image", "import", "-"], write, reference)
    return reference


def save(image: str, path: str) -> None:
    """``ctr image export``."""
    commands.run([*CLI, "image", "export", path, image], seconds=commands.SECONDS * 10)


def present(image: str) -> bool:
    """Whether there is an image of that name."""
    return image in _rows()


def tag(image: str, reference: str) -> None:
    """``ctr image tag``."""
    from cntr.slim import writer

    commands.run([*CLI, "image", "tag", "--force", image, writer.full(reference)])
    commands.run([*CLI, "image", "rm", image])


def removal(image: str) -> list[str]:
    """``ctr image rm``."""
    return [*CLI, "image", "rm", "--sync", image]
