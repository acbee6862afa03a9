"""The rigs of system containers: LXC, LXD, Incus, systemd-nspawn."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess

from testkit.engines import newer, workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.workspaces import Failed, run

MAP = 7 * 65536  # systemd-nspawn chowns to multiples of 65536 only


class Lxc(Rig):
    """lxc-start with a container path of its own."""

    engine = "lxc"
    needs = {"lxc-start": "lxc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "scratch", "userns", "paused")

    def start(self) -> None:
        """Does nothing: there is no daemon."""
        self.path = f"{self.workspace.path}/lxc"
        os.mkdir(self.path)

    def make(self, variant: str, name: str) -> EngineContainer:
        """Write the configuration, lxc-start."""
        directory = f"{self.path}/{name}"
        os.mkdir(directory)
        root = (workspaces.scratch_root if variant == "scratch" else workspaces.busybox_root)(f"{directory}/rootfs")
        os.makedirs(f"{root}/dev", exist_ok=True)  # LXC makes links there even without lxc.autodev
        lines = [f"lxc.uts.name = {name}", f"lxc.rootfs.path = dir:{root}", "lxc.net.0.type = empty"]
        lines += [f"lxc.cgroup.dir = {self.workspace.mark}/{name}"]
        if variant == "scratch":
            lines += [
                "lxc.init.cmd = /app",
                "lxc.autodev = 0",
                "lxc.pty.max = 0",
                "lxc.tty.max = 0",
                "lxc.console.path = none",
            ]
        else:
            lines += ["lxc.init.cmd = /bin/sleep 100000", "lxc.mount.auto = proc:mixed sys:mixed"]
        if variant == "userns":
            run(["chown", "-hR", f"{MAP}:{MAP}", root])
            lines += [f"lxc.idmap = u 0 {MAP} 65536", f"lxc.idmap = g 0 {MAP} 65536"]
        pathlib.Path(directory, "config").write_text("\n".join(lines) + "\n")
        try:
            run(
                ["lxc-start", "-P", self.path, "-n", name, "-d", "-o", f"{directory}/log", "-l", "INFO"],
                env=self.workspace.env,
            )
        except Failed as error:
            raise Failed(f"{error}\n{pathlib.Path(directory, 'log').read_text()}") from None
        if variant == "paused":
            run(["lxc-freeze", "-P", self.path, "-n", name], env=self.workspace.env)
        return EngineContainer(
            self, name, int(run(["lxc-info", "-P", self.path, "-n", name, "-pH"], env=self.workspace.env)), rootfs=root
        )

    def remove(self, container: EngineContainer) -> None:
        """Stop it, after unfreezing."""
        subprocess.call(
            ["lxc-unfreeze", "-P", self.path, "-n", container.name], env=self.workspace.env, stderr=subprocess.DEVNULL
        )
        run(["lxc-stop", "-k", "-P", self.path, "-n", container.name], env=self.workspace.env)
        shutil.rmtree(f"{self.path}/{container.name}")


class Lxd(Rig):
    """lxd with a directory of its own, a dir pool, a local image."""

    engine = "lxd"
    needs = {"lxd": "lxd", "lxc": "lxd-client", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "paused", "privileged")
    variable = "LXD_DIR"
    client: tuple[str, ...] = ("lxc",)
    server: tuple[str, ...] = ("lxd", "--group", "root")

    def start(self) -> None:
        """Start the daemon; make pool, profile and image."""
        directory = f"{self.workspace.path}/state"
        os.mkdir(directory, 0o711)
        self.settings = {self.variable: directory}
        self.workspace.env = {
            **self.workspace.env,
            **self.settings,
            "HOME": self.workspace.path,
            "PATH": f"{os.environ['PATH']}:/usr/libexec/incus",
        }
        process = self.workspace.daemon(self.server, log="log")
        self.workspace.wait_for(self.engine, self._answers, process=process, seconds=60)
        root = workspaces.busybox_root(f"{self.workspace.path}/image/rootfs")
        os.mkdir(f"{root}/sbin")
        pathlib.Path(root, "sbin/init").write_text("#!/bin/sh\nexec /bin/sleep 100000\n")
        pathlib.Path(root, "sbin/init").chmod(0o755)
        machine = os.uname().machine
        pathlib.Path(self.workspace.path, "image/metadata.yaml").write_text(
            f"architecture: {machine}\ncreation_date: 1700000000\nproperties:\n  description: slim\n"
        )
        tarball = f"{self.workspace.path}/image.tar"
        run(["tar", "-C", f"{self.workspace.path}/image", "-cf", tarball, "metadata.yaml", "rootfs"])
        self.command("storage", "create", "default", "dir")
        self.command("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default")
        self.command("image", "import", tarball, "--alias", "slim")

    def command(self, *arguments: str) -> str:
        """Run the client. Raises Failed with the daemon's log."""
        try:
            return run([*self.client, *arguments], env=self.workspace.env, timeout=90)
        except Failed as error:
            raise Failed(f"{error}\n{self.workspace.log('log')}") from None

    def _answers(self) -> bool:
        command = [*self.client, "query", "/1.0"]
        return not subprocess.call(
            command, env=self.workspace.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def make(self, variant: str, name: str) -> EngineContainer:
        """``launch``; the pid as the API tells it."""
        flags = ["-c", "security.privileged=true"] if variant == "privileged" else []
        self.command("launch", "slim", name, "-q", *flags)
        state = json.loads(self.command("query", f"/1.0/instances/{name}/state"))
        if variant == "paused":
            self.command("pause", name)
        return EngineContainer(self, name, int(state["pid"]))

    def remove(self, container: EngineContainer) -> None:
        """``delete --force``, after unfreezing."""
        try:
            self.command("start", container.name)
        except Failed:
            pass
        self.command("delete", "--force", container.name)


class Incus(Lxd):
    """incusd of Debian 13, from a cached root."""

    engine = "incus"
    needs = {"busybox": "busybox-static"}  # noqa: RUF012
    variable = "INCUS_DIR"

    def start(self) -> None:
        """The same, in the newer suite's root."""
        self.client = (*newer.prefix("trixie"), "incus")
        self.server = (*newer.prefix("trixie"), "incusd", "--group", "root")
        super().start()


class Nspawn(Rig):
    """systemd-nspawn without systemd: not registered."""

    engine = "nspawn"
    needs = {"systemd-nspawn": "systemd-container", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "read_only", "as_pid2", "userns")

    def make(self, variant: str, name: str) -> EngineContainer:
        """Start one; its child in the new pid namespace is the container."""
        root = workspaces.busybox_root(f"{self.workspace.path}/{name}")
        for directory in ("usr", "root", "run", "var"):
            os.mkdir(f"{root}/{directory}")
        flags = {
            "read_only": ["--read-only"],
            "as_pid2": ["--as-pid2"],
            "userns": [f"--private-users={MAP}", "--private-users-ownership=chown"],
        }
        command = [
            "systemd-nspawn",
            "-q",
            "--register=no",
            "--keep-unit",
            "-D",
            root,
            "-M",
            name,
            *flags.get(variant, []),
        ]
        process = self.workspace.daemon([*command, "/bin/sleep", "100000"], log="log")
        found: list[int] = []

        def arrived() -> bool:
            path = f"/proc/{process.pid}/task/{process.pid}/children"
            found[:] = [pid for pid in map(int, pathlib.Path(path).read_text().split()) if _runs(pid, variant)]
            return bool(found)

        self.workspace.wait_for("systemd-nspawn", arrived, process=process)
        self.monitors[name] = process
        return EngineContainer(self, name, found[0], rootfs=root)

    def start(self) -> None:
        """Does nothing: there is no daemon."""
        self.monitors: dict[str, subprocess.Popen[bytes]] = {}

    def remove(self, container: EngineContainer) -> None:
        """Kill the container, after which systemd-nspawn exits."""
        os.kill(container.pid, 9)
        self.monitors[container.name].wait(timeout=20)
        # It is left if /run is no tmpfs: "Attempted to remove disk file system …, and we can't allow that."
        shutil.rmtree(f"/run/systemd/nspawn/propagate/{container.name}", ignore_errors=True)


def _runs(pid: int, variant: str) -> bool:
    """Whether the container's first process has executed its command."""
    try:
        name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    return name == ("(sd-stubinit)" if variant == "as_pid2" else "sleep")
