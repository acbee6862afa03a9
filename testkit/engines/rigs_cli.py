"""The rigs of Docker and Podman: rootful, remapped and rootless."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator

from testkit.engines import newer, workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.workspaces import Failed, run
from testkit.waiting import wait_until

WAIT = ["sleep", "100000"]
CLI = {  # variant → the flags that docker and podman share
    "busybox": [],
    "scratch": [],
    "read_only": ["--read-only"],
    "unprivileged": ["--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
    "host_net": ["--network", "host"],
    "host_pid": ["--pid", "host"],
    "shared_pid": [],
    "paused": [],
    "volume": [],
    "tmpfs": ["--tmpfs", "/data"],
    "keep_id": ["--userns", "keep-id"],
    "privileged": ["--privileged"],
    "userns": ["--uidmap", "0:1:65000", "--gidmap", "0:1:65000"],
}


class CliRig(Rig):
    """What Docker and Podman have in common: their command-line client."""

    def command(self, *arguments: str, timeout: float = 60) -> str:
        """Run the client. Raises Failed."""
        return run([*self.cli, *arguments], env=self.workspace.env, timeout=timeout)

    cli: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # flags of every run

    def images(self) -> None:
        """Import the two images of every rig."""
        for image, make in (("slim:1", workspaces.busybox_root), ("scratch:1", workspaces.scratch_root)):
            root = make(f"{self.workspace.path}/image-{image[:-2]}")
            tarball = f"{root}.tar"
            run(["tar", "-C", root, "-cf", tarball, "."])
            os.chmod(tarball, 0o644)
            self.command("import", tarball, image)

    def make(self, variant: str, name: str) -> EngineContainer:
        """``run -d`` with the variant's flags."""
        flags, parts = [*self.extra, *CLI[variant]], []
        if variant != "host_net":
            flags += ["--network", "none"]
        if variant == "volume":
            directory = pathlib.Path(self.workspace.path, f"volume-{name}")
            directory.mkdir()
            (directory / "mark").write_text(f"{name}\n")
            flags += ["-v", f"{directory}:/data"]
        if variant == "shared_pid":
            parts.append(self.container("busybox"))
            flags += ["--pid", f"container:{parts[0].name}"]
        image = ["scratch:1", "/app"] if variant == "scratch" else ["slim:1", *WAIT]
        self.command("run", "-d", "--name", name, *flags, *image)
        if variant == "paused":
            self.command("pause", name)
        record = json.loads(self.command("inspect", name))[0]
        data = record.get("GraphDriver", {}).get("Data") or {}
        container = EngineContainer(
            self,
            name,
            record["State"]["Pid"],
            id=record["Id"],
            rootfs=data.get("MergedDir", ""),
            upper=data.get("UpperDir", ""),
        )
        container.parts = parts
        return container

    def remove(self, container: EngineContainer) -> None:
        """``rm -f``, after unpausing: a frozen process cannot be killed on version 1 cgroups."""
        try:
            self.command("unpause", container.name)
        except Failed:
            pass
        try:
            self.command("rm", "-f", *self.remove_flags, container.name)
        except Failed as error:
            if "device or resource busy" not in str(error):
                raise
            # conmon's cleanup of a container that has just ended unmounts the same directories.
            busy = str(error).split("unlinkat ")[-1].partition(": ")[0]
            wait_until(lambda: not os.path.ismount(busy), "its unmounting")
            self.command("rm", "-f", *self.remove_flags, container.name)

    remove_flags: tuple[str, ...] = ()


class Docker(CliRig):
    """dockerd with data, socket and containerd of its own; no network, no iptables."""

    engine = "docker"
    needs = {"dockerd": "docker.io", "docker": "docker.io", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = (
        *("busybox", "scratch", "read_only", "unprivileged", "host_net", "host_pid", "shared_pid"),
        *("paused", "volume", "tmpfs"),
    )
    flags: tuple[str, ...] = ()

    def prefix(self) -> tuple[str, ...]:
        """The command that dockerd runs under."""
        return ()

    def start(self) -> None:
        """Start dockerd, wait for its socket, import the images."""
        path = self.workspace.path
        socket = f"unix://{path}/docker.sock"
        # Two daemons must not share the cgroup of a containerd namespace, and the cgroup's name lets the clean-up find
        # it.
        flags = ["--data-root", f"{path}/data", "--exec-root", f"{path}/exec", "-p", f"{path}/docker.pid", "-H", socket]
        # Nor is this machine's forwarding switched on, which rootless Docker may not do either.
        flags += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none", *self.store()]
        flags += ["--cgroup-parent", f"/{self.workspace.mark}", *self.flags]
        process = self.workspace.daemon([*self.prefix(), "dockerd", *flags], log="log")
        self.settings["DOCKER_HOST"] = socket
        self.socket = f"{path}/docker.sock"
        self.cli = ("docker", "-H", socket)
        self.workspace.wait_for("dockerd", self._answers, process=process)
        self.images()

    def store(self) -> tuple[str, ...]:
        """The flags that choose where images are kept."""
        return ("--storage-driver=overlay2",)

    def _answers(self) -> bool:
        # Not `version`: the rootless daemon of docker.io 26.1 panics on it if rootlesskit serves no network of its own.
        return os.path.exists(self.socket) and not subprocess.call(
            [*self.cli, "ps"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.workspace.env
        )


class DockerSnapshots(Docker):
    """dockerd of Debian 13, with containerd's image store (in Docker since version 23; Debian 12 has 20.10)."""

    variants = ("busybox",)

    def prefix(self) -> tuple[str, ...]:
        """The command that runs in the newer suite's root."""
        return newer.prefix("trixie")

    def store(self) -> tuple[str, ...]:
        """The daemon's feature; its own containerd's socket is in its own state directory."""
        pathlib.Path(self.workspace.path, "daemon.json").write_text('{"features": {"containerd-snapshotter": true}}')
        self.settings = {"CONTAINERD_ADDRESS": f"{self.workspace.path}/exec/containerd/containerd.sock"}
        return ("--config-file", f"{self.workspace.path}/daemon.json")


class DockerWhole(Docker):
    """dockerd with a complete copy of the files for each container."""

    variants = ("busybox",)

    def store(self) -> tuple[str, ...]:
        """The storage driver, which works on any file system."""
        return ("--storage-driver=vfs",)


class DockerRemapped(Docker):
    """dockerd --userns-remap: the container's root is an ordinary uid of the host."""

    variants: tuple[str, ...] = ("busybox", "scratch", "read_only", "unprivileged", "volume")
    flags = ("--userns-remap", "default")

    def prefix(self) -> tuple[str, ...]:
        """A view of /etc in which dockremap exists; the machine's own files are not changed."""
        return workspaces.users_view(self.workspace.path, [("dockremap", 29999)])


class Podman(CliRig):
    """Podman as root, with a store of its own; no daemon."""

    engine = "podman"
    needs = {"podman": "podman", "runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = (*Docker.variants, "privileged", "userns")
    extra: tuple[str, ...] = workspaces.ULIMITS
    remove_flags = ("-t", "0")
    runtime = "runc"  # works with hybrid cgroups

    def start(self) -> None:
        """Write the store's configuration, import the images."""
        path = self.workspace.path
        conf = f"{path}/storage.conf"
        pathlib.Path(conf).write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{path}/graph"\nrunroot = "{path}/run"\n'
        )
        self.settings = {"CONTAINERS_STORAGE_CONF": conf}
        # A pod's infra container accepts no --ulimit.
        limits = ", ".join(f'"{limit}"' for limit in workspaces.ULIMITS[1::2])
        pathlib.Path(f"{path}/containers.conf").write_text(f"[containers]\ndefault_ulimits = [{limits}]\n")
        self.workspace.env.update(self.settings, CONTAINERS_CONF=f"{path}/containers.conf")
        self.cli = (
            *self.prefix(),
            "podman",
            "--runtime",
            self.runtime,
            "--runtime-flag",
            f"root={path}/oci",
            *self.common(),
        )
        self.extra = (*workspaces.ULIMITS, "--cgroup-parent", f"/{self.workspace.mark}")
        self.images()

    @contextlib.contextmanager
    def pod(self, *containers: str, infra: bool) -> Iterator[tuple[str, str]]:
        """(name, id) of a running pod with these containers, with or without the infra container."""
        name = workspaces.unique("pod")
        flags = ["--infra-image", "slim:1", "--infra-command", " ".join(["/bin/sleep", *WAIT[1:]]), "--network", "none"]
        flags += ["--cgroup-parent", f"/{self.workspace.mark}"]
        id = self.command("pod", "create", "--name", name, *(flags if infra else ["--infra=false"])).strip()
        try:
            for container in containers:
                network = () if infra else ("--network", "none")
                limits = self.extra if not infra else workspaces.ULIMITS
                self.command("run", "-d", "--pod", name, "--name", container, *limits, *network, "slim:1", *WAIT)
            yield name, id
        finally:
            self.command("pod", "rm", "-f", *self.remove_flags, name)

    def pid(self, container: str) -> int:
        """The pid according to podman."""
        return int(self.command("inspect", "--format", "{{.State.Pid}}", container))

    def common(self) -> tuple[str, ...]:
        """The flags before the subcommand."""
        tmp = f"{self.workspace.path}/libpod"
        return ("--cgroup-manager=cgroupfs", "--events-backend=file", "--tmpdir", tmp)

    def prefix(self) -> tuple[str, ...]:
        """The command that podman runs under."""
        return ()


class PodmanNewer(Podman):
    """Podman of Debian 13, from a cached root: its state is an SQLite database."""

    needs = {"busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "paused")

    def prefix(self) -> tuple[str, ...]:
        """The command that runs in the newer suite's root."""
        return newer.prefix("trixie")


class PodmanRootless(Podman):
    """Podman as an ordinary user with subordinate ids, in a view of /etc in which the user exists."""

    needs = {"podman": "podman", "crun": "crun", "newuidmap": "uidmap", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = (
        "busybox",
        "scratch",
        "read_only",
        "unprivileged",
        "host_net",
        "volume",
        "tmpfs",
        "keep_id",
    )
    uid = 29998

    def start(self) -> None:
        """Make the user's home and runtime directory, import the images as the user."""
        path = self.workspace.path
        home, runtime = f"{path}/home-slim", f"{path}/runtime"
        for directory in (home, runtime):
            os.mkdir(directory, 0o700)
            os.chown(directory, self.uid, self.uid)
        os.mkdir(f"{path}/tmp", 0o1777)
        os.chmod(f"{path}/tmp", 0o1777)
        self.workspace.env = {
            "PATH": os.environ["PATH"],
            **{"HOME": home, "XDG_RUNTIME_DIR": runtime, "USER": "slim", "LOGNAME": "slim"},
            **{"CNTR_RIG": self.workspace.mark, "TMPDIR": f"{path}/tmp"},
        }
        view = workspaces.users_view(path, [("slim", self.uid)])
        user = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all")
        self.cli = (*view, *user, "podman", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime", "crun")
        # On fuse-overlayfs the root mount names no directory of the rig's: the environment does.
        self.extra = (*workspaces.ULIMITS, "--env", f"CNTR_RIG={self.workspace.mark}")
        os.chdir("/")
        self.images()
