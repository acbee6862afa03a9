"""The rigs of the low-level runtimes runc and crun, and of containers without an engine: bubblewrap, and system calls
by hand.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from testkit.engines import workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.workspaces import Failed, cg1, run


class Bundle(Rig):
    """runc and crun: a bundle and a config.json for each container."""

    needs = {"runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = (
        "busybox",
        "scratch",
        "read_only",
        "unprivileged",
        "host_net",
        "host_pid",
        "userns",
        "paused",
        "tmpfs",
    )
    runtime = "runc"

    def start(self) -> None:
        """Make the two roots; there is no daemon."""
        path = self.workspace.path
        self.roots = {
            "busybox": workspaces.busybox_root(f"{path}/slim"),
            "scratch": workspaces.scratch_root(f"{path}/scratch"),
        }
        self.cli = (*self.prefix(), self.runtime, "--root", f"{path}/state")
        self.settings = {f"CNTR_{self.runtime.upper()}_ROOT": f"{path}/state"}

    def prefix(self) -> tuple[str, ...]:
        """The command that the runtime runs under."""
        return ()

    def make(self, variant: str, name: str) -> EngineContainer:
        """``run -d`` of a bundle."""
        bundle = pathlib.Path(self.workspace.path, f"bundle-{name}")
        bundle.mkdir()
        config = self.config(variant, name)
        (bundle / "config.json").write_text(json.dumps(config))
        command = [*self.cli, "run", "-d", "-b", str(bundle), "--pid-file", f"{bundle}/pid", name]
        log = f"{bundle}/log"
        # The container keeps these streams, so a pipe would never reach its end. crun chowns them to the container's
        # user, so the machine's /dev/null is not used either.
        with open(log, "wb") as stream, open(f"{bundle}/stdin", "w+b") as source:
            code = subprocess.call(
                command, stdin=source, stdout=stream, stderr=stream, env=self.workspace.env, timeout=60
            )
        if code:
            raise Failed(f"{' '.join(command)}: exit status {code}\n{pathlib.Path(log).read_text()}")
        container = EngineContainer(self, name, int((bundle / "pid").read_text()), rootfs=config["root"]["path"])
        if variant == "paused":
            run([*self.cli, "pause", name], env=self.workspace.env)
        return container

    def config(self, variant: str, name: str) -> dict[str, Any]:
        """The OCI runtime configuration of VARIANT."""
        root = self.roots["scratch" if variant == "scratch" else "busybox"]
        plain = variant == "unprivileged"
        capabilities = [] if plain else ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]
        namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts", "pid", "network")]
        namespaces = [n for n in namespaces if variant != f"host_{ {'network': 'net'}.get(n['type'], n['type']) }"]
        linux: dict[str, Any] = {"namespaces": namespaces, "cgroupsPath": f"/{self.workspace.mark}/{name}"}
        if variant == "userns":
            root = self.mapped_root(name)
            namespaces.append({"type": "user"})
            rows = [{"containerID": 0, "hostID": 300000, "size": 65536}]
            linux |= {"uidMappings": rows, "gidMappings": rows}
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ]
        if variant == "no_proc":
            mounts = mounts[1:]
        if variant == "scratch":
            mounts = mounts[:2]  # runc needs a /proc in the container to close its own fds; crun a /dev
        if variant == "tmpfs":
            mounts.append({"destination": "/data", "type": "tmpfs", "source": "tmpfs"})
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"],
                "cwd": "/",
                "env": ["PATH=/bin", f"BOX={name}"],
                "user": {"uid": 1000, "gid": 1000} if plain else {"uid": 0, "gid": 0},
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "noNewPrivileges": plain,
            },
            "root": {"path": root, "readonly": variant == "read_only"},
            "hostname": name if "uts" in {n["type"] for n in namespaces} else "",
            "mounts": mounts,
            "linux": linux,
        }

    def mapped_root(self, name: str) -> str:
        """A copy of the busybox root owned by the mapped root."""
        root = f"{self.workspace.path}/root-{name}"
        run(["cp", "-a", self.roots["busybox"], root])
        run(["chown", "-hR", "300000:300000", root])
        return root

    def remove(self, container: EngineContainer) -> None:
        """``delete --force``, after unfreezing."""
        try:
            run([*self.cli, "resume", container.name], env=self.workspace.env)
        except Failed:
            pass
        run([*self.cli, "delete", "--force", container.name], env=self.workspace.env)


class Runc(Bundle):
    """runc, unmodified."""

    engine = runtime = "runc"


class Crun(Bundle):
    """crun, with the unified hierarchy hidden: it refuses hybrid cgroups."""

    engine = runtime = "crun"
    needs = {"crun": "crun", "busybox": "busybox-static"}  # noqa: RUF012

    def prefix(self) -> tuple[str, ...]:
        """The command that hides the unified hierarchy."""
        return cg1()


class Bwrap(Rig):
    """bubblewrap: namespaces without an engine; the target is a pid."""

    engine = "pid"
    needs = {"bwrap": "bubblewrap", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "scratch", "read_only", "no_proc")

    def start(self) -> None:
        """Make the two roots."""
        self.roots = {
            "busybox": workspaces.busybox_root(f"{self.workspace.path}/slim"),
            "scratch": workspaces.scratch_root(f"{self.workspace.path}/scratch"),
        }

    def make(self, variant: str, name: str) -> EngineContainer:
        """Start one bwrap; --info-fd tells the pid."""
        root = self.roots["scratch" if variant == "scratch" else "busybox"]
        reading, writing = os.pipe()
        flags = ["--unshare-all", "--as-pid-1", "--die-with-parent", "--info-fd", str(writing), "--hostname", name]
        flags += ["--ro-bind" if variant == "read_only" else "--bind", root, "/"]
        if variant in ("busybox", "read_only"):
            flags += ["--proc", "/proc", "--dev", "/dev"]
        argv = ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"]
        with open(f"{self.workspace.path}/log", "ab") as stream:
            process = subprocess.Popen(
                ["bwrap", *flags, "--", *argv],
                pass_fds=(writing,),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={"PATH": "/bin", "CNTR_RIG": self.workspace.mark, "BOX": name},
            )
        os.close(writing)
        with open(reading, "rb") as stream:
            text = stream.read()
        if not text:
            process.wait(timeout=10)
            raise Failed(f"bwrap {' '.join(flags)}: {self.workspace.log('log')}")
        self.workspace.daemons.append(process)
        container = EngineContainer(self, name, json.loads(text)["child-pid"], rootfs=root)
        self.workspace.wait_for(
            "bwrap", lambda: os.readlink(f"/proc/{container.pid}/exe").startswith(("/app", "/bin/busybox"))
        )
        return container

    def remove(self, container: EngineContainer) -> None:
        """Kill its pid 1, which ends the namespaces."""
        os.kill(container.pid, 9)


class ByHand(Rig):
    """Namespaces made by system calls (byhand.py), or a plain chroot: containers that no engine makes."""

    engine = "pid"
    needs = {"busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "scratch", "chroot", "deleted_exe", "many_mounts", "shared_root")

    def start(self) -> None:
        """Make the two roots."""
        self.roots = {
            "busybox": workspaces.busybox_root(f"{self.workspace.path}/slim"),
            "scratch": workspaces.scratch_root(f"{self.workspace.path}/scratch"),
        }

    def make(self, variant: str, name: str) -> EngineContainer:
        """Run the steps of the variant in a shell that becomes the container's first process."""
        path = f"{self.workspace.path}/root-{name}"
        os.mkdir(path)
        source = self.roots["scratch" if variant == "scratch" else "busybox"]
        command = ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"]
        if variant == "chroot":
            run(["cp", "-a", f"{source}/.", path])
        argv = [sys.executable, "-m", "testkit.engines.byhand", variant, source, path, "--", *command]
        with open(f"{self.workspace.path}/log", "ab") as stream:
            process = subprocess.Popen(
                argv,
                cwd=pathlib.Path(__file__).parents[2],
                env={**self.workspace.env, "BOX": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
            )
        self.workspace.daemons.append(process)
        assert process.stdout
        with process.stdout:
            line = process.stdout.readline()
        if not line:
            raise Failed(f"by hand, {variant}: {self.workspace.log('log')}")
        return EngineContainer(self, name, int(line), rootfs=path)

    def remove(self, container: EngineContainer) -> None:
        """Kill it, which ends its namespaces."""
        os.kill(container.pid, 9)
