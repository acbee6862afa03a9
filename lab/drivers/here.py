"""This host as a machine, without a VM: mount, pid and network namespaces in which the engines run.

Everything the engines write goes to tmpfs or the run directory, mounted over the host's own directories. The host's
container engines are neither visible nor disturbed. Everything ends with the namespaces' first process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .. import paths
from ..errors import LabError
from ..local import LocalCarrier
from . import base

# Directories of the engines and of the lab, replaced by fresh ones.
PLACES = (
    "var/lib/docker", "var/lib/containerd", "var/lib/containers", "var/lib/lxc", "var/lib/machines", "var/lib/cntr-lab", "var/lib/cni",
    "var/log", "opt/cntr", "usr/local/bin", "usr/local/lib/cntr-lab", "usr/local/sbin", "home/vagrant", "root", "tmp",
)  # fmt: skip
USER = "vagrant"
UID = 1000


class HereDriver:
    """A holder process with namespaces; see `base.Driver`."""

    name = "here"
    is_resumed = False

    def __init__(self, plan: base.Plan) -> None:
        self._plan, self._dir = plan, plan.run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint: base.Endpoint | None = None

    def up(self) -> base.Endpoint:
        """Make the namespaces. Raises LabError: not root, or the kernel refuses."""
        if os.geteuid() != 0:
            raise LabError("--driver here needs root: engines run in namespaces of this host", "sudo, or --driver qemu")
        for tool in ("unshare", "nsenter", "busybox", "gcc"):
            if not shutil.which(tool):
                raise LabError(
                    f"--driver here needs {tool}, which is not installed",
                    "apt-get install util-linux busybox-static gcc libc6-dev",
                )
        base.write_state(self._plan, self.name)
        for place in PLACES:
            (self._dir / "over" / place).mkdir(parents=True, exist_ok=True)
        self._files()
        script = paths.LAB / "provision" / "here.sh"
        with (self._dir / "console.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--propagation", "private",
                 "sh", str(script), str(self._dir), *PLACES],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while not (self._dir / "ready").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"the lab's namespaces could not be made: {self.console().strip()[-400:]}")
            time.sleep(0.05)
        (self._dir / "pid").write_text(f"{self._first_process()}\n")
        self.endpoint = base.Endpoint("here", 0, Path("/dev/null"))
        return self.endpoint

    def _files(self) -> None:
        """Make a user `vagrant` with subordinate ids, as in the boxes, in copies of the host's files; and cntr's own
        Python.
        """
        etc = self._dir / "etc"
        etc.mkdir(exist_ok=True)
        rows = {
            "passwd": f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n",
            "group": f"{USER}:x:{UID}:\n",
            "subuid": f"{USER}:1000000:65536\n",
            "subgid": f"{USER}:1000000:65536\n",
        }
        for name, row in rows.items():
            source = Path("/etc") / name
            kept = [
                line for line in (source.read_text().splitlines(True) if source.exists() else [])
                if not line.startswith(f"{USER}:") and f":{UID}:" not in line
            ]  # fmt: skip
            (etc / name).write_text("".join(kept) + row)

    def _first_process(self) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def prefixes(self) -> dict[str, list[str]]:
        """Command prefixes that enter the namespaces, per user."""
        pid = (self._dir / "pid").read_text().strip()
        environment = [
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
            "LANG=C.UTF-8",
        ]
        root = ["nsenter", "--target", pid, "--mount", "--pid", "--net", "--uts", "--ipc", "--wd=/", *environment]
        user = [
            "setpriv",
            f"--reuid={UID}",
            f"--regid={UID}",
            "--clear-groups",
            "env",
            f"HOME=/home/{USER}",
            f"USER={USER}",
            f"XDG_RUNTIME_DIR=/run/user/{UID}",
        ]
        return {"root": [*root, "HOME=/root", "USER=root"], USER: [*root, *user]}

    def carrier(self) -> LocalCarrier:
        """How commands are run in the machine."""
        return LocalCarrier(self.prefixes())

    def booted(self, hang_up: Callable[[], None]) -> None:
        """Does nothing: no state is kept."""

    def snapshot(self, name: str) -> None:
        """Not possible without a VM."""
        raise LabError("--driver here has no snapshots", "--driver qemu or vagrant has them")

    def restore(self, name: str) -> None:
        """Not possible without a VM."""
        raise LabError("--driver here has no snapshots", "--driver qemu or vagrant has them")

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)

    def leave(self) -> None:
        """Its process keeps running."""
        base.outlives(self._process)

    def destroy(self) -> None:
        """End the namespaces, and remove the files and cgroups that the engines left."""
        cgroups = self._cgroups()
        self._kill()
        self._kill_by_note()
        for path in sorted(cgroups, key=len, reverse=True):
            try:
                os.rmdir(path)
            except OSError:
                continue
        base.remove_run_dir(self._dir)

    def _kill_by_note(self) -> None:
        """For `lab clean`: kill the first process if it is still the one that was started."""
        try:
            pid = int((self._dir / "pid").read_text())
            if str(self._dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            return

    def _cgroups(self) -> list[str]:
        """Cgroups whose processes are all in our pid namespace."""
        try:
            ours = os.readlink(f"/proc/{int((self._dir / 'pid').read_text())}/ns/pid")
        except (OSError, ValueError):
            return []
        found: dict[str, bool] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                deeper = int(
                    next(
                        line for line in (process / "status").read_text().splitlines() if line.startswith("NSpid")
                    ).split()[-1]
                )
                mine = (
                    os.readlink(process / "ns/pid") == ours
                    or os.readlink(process / "ns/pid_for_children") == ours
                    or deeper != int(process.name)
                )
                lines = (process / "cgroup").read_text().splitlines()
            except (OSError, StopIteration):
                continue
            for line in lines:
                _, controllers, path = line.split(":", 2)
                root = (
                    f"/sys/fs/cgroup/{controllers.removeprefix('name=')}" if controllers else "/sys/fs/cgroup/unified"
                )
                if path != "/":
                    found[root + path] = found.get(root + path, True) and mine
        return [path for path, mine in found.items() if mine]

    def alive(self) -> bool:
        """Whether the holder runs."""
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        """The holder's output."""
        try:
            return (self._dir / "console.log").read_text(errors="replace")
        except OSError:
            return ""
