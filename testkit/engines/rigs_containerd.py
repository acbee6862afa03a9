"""The rigs of containerd: by ``ctr``, and as a Kubernetes node's runtime by CRI."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess

import pytest

from testkit.engines import cri, workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.workspaces import Failed, run

WAIT = ["/bin/sleep", "100000"]


def docker_archive(directory: str, root: str, name: str, command: list[str]) -> str:
    """Write an archive as by ``docker save``, for an image of one layer with ROOT's content; return its path."""
    os.makedirs(directory)
    layer = f"{directory}/layer.tar"
    run(["tar", "-C", root, "-cf", layer, "."])
    digest = hashlib.sha256(pathlib.Path(layer).read_bytes()).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        **{"architecture": machine, "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/bin"]}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    pathlib.Path(directory, "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    pathlib.Path(directory, "manifest.json").write_text(json.dumps(manifest))
    archive = f"{directory}.tar"
    run(["tar", "-C", directory, "-cf", archive, "config.json", "layer.tar", "manifest.json"])
    os.chmod(archive, 0o644)
    return archive


class Containerd(Rig):
    """containerd with root, state and socket of its own."""

    engine = "containerd"
    needs = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "scratch", "read_only", "host_net", "paused", "privileged")
    namespace = "default"
    flags = {  # noqa: RUF012
        "read_only": ["--read-only"],
        "host_net": ["--net-host"],
        "privileged": ["--privileged"],
    }

    def start(self) -> None:
        """Start the daemon, import the images."""
        path = self.workspace.path
        self.socket = f"{path}/c.sock"
        pathlib.Path(path, "config.toml").write_text(self.configuration())
        process = self.workspace.daemon(["containerd", "-c", f"{path}/config.toml"], log="log")
        self.cli = ("ctr", "-a", self.socket, "-n", self.namespace)
        self.settings = {"CNTR_CONTAINERD_ROOT": f"{path}/state"}
        self.workspace.wait_for("containerd", lambda: os.path.exists(self.socket), process=process)
        images = (
            ("localhost/slim:1", workspaces.busybox_root, WAIT),
            ("localhost/scratch:1", workspaces.scratch_root, ["/app"]),
        )
        for name, make, command in images:
            kind = name[10:-2]
            archive = docker_archive(f"{path}/archive-{kind}", make(f"{path}/image-{kind}"), name, command)
            run([*self.cli, "image", "import", archive], env=self.workspace.env)

    def configuration(self) -> str:
        """The daemon's config.toml."""
        path = self.workspace.path
        return f'version = 2\nroot = "{path}/root"\nstate = "{path}/state"\n[grpc]\naddress = "{self.socket}"\n'

    def make(self, variant: str, name: str) -> EngineContainer:
        """``ctr run -d``."""
        image = ["localhost/scratch:1"] if variant == "scratch" else ["localhost/slim:1"]
        command = ["/app"] if variant == "scratch" else WAIT
        flags = ["--cgroup", f"/{self.workspace.mark}/{name}", *self.flags.get(variant, [])]
        run([*self.cli, "run", "-d", *flags, *image, name, *command], env=self.workspace.env)
        rows = run([*self.cli, "task", "ls"], env=self.workspace.env).splitlines()
        pid = next(int(row.split()[1]) for row in rows if row.split()[0] == name)
        if variant == "paused":
            run([*self.cli, "task", "pause", name], env=self.workspace.env)
        return EngineContainer(self, name, pid)

    def remove(self, container: EngineContainer) -> None:
        """Kill the task and wait until it is gone, then delete the container."""
        subprocess.call(
            [*self.cli, "task", "resume", container.name], env=self.workspace.env, stderr=subprocess.DEVNULL
        )
        run([*self.cli, "task", "delete", "--force", container.name], env=self.workspace.env)
        run([*self.cli, "container", "delete", container.name], env=self.workspace.env)


class Kubernetes(Containerd):
    """containerd's CRI plugin, used as by a kubelet: pods in the host's network, no CNI plugin, no kubelet."""

    engine = "k8s"
    variants: tuple[str, ...] = ("busybox", "scratch", "read_only", "unprivileged", "shared_pid")
    namespace = "k8s.io"

    def start(self) -> None:
        """Start it, connect over gRPC."""
        python = cri.interpreter()
        if not python:
            pytest.skip("not installed: python3-grpcio (apt-get install), or grpcio (pip)")
        super().start()
        self.runtime = cri.Runtime(self.socket, python)
        self.pods: dict[str, str] = {}

    def configuration(self) -> str:
        """The configuration with the CRI plugin's settings for a machine without AppArmor and CAP_SYS_RESOURCE."""
        path = self.workspace.path
        return f"""{super().configuration()}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/scratch:1"
disable_apparmor = true
restrict_oom_score_adj = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{path}/cni/bin"
conf_dir = "{path}/cni/conf"
[plugins."io.containerd.internal.v1.opt"]
path = "{path}/opt"
"""

    def make(self, variant: str, name: str) -> EngineContainer:
        """RunPodSandbox, CreateContainer, StartContainer."""
        pid = cri.POD if variant == "shared_pid" else cri.CONTAINER
        pod = cri.sandbox(name, "prod", f"uid-{name}", cgroup=f"/{self.workspace.mark}", pid=pid)
        sandbox = self.runtime.call("RunPodSandbox", {1: pod})
        image, command = ("scratch", ["/app"]) if variant == "scratch" else ("slim", WAIT)
        config = cri.container(
            *("app", f"localhost/{image}:1", command),
            pid=pid,
            user=1000 if variant == "unprivileged" else 0,
            read_only=variant == "read_only",
        )
        id = self.runtime.call("CreateContainer", {1: sandbox, 2: config, 3: pod})
        self.runtime.call("StartContainer", {1: id})
        rows = run([*self.cli, "task", "ls"], env=self.workspace.env).splitlines()
        number = next((int(row.split()[1]) for row in rows if row.split()[0] == id), 0)
        if not number:
            raise Failed(f"no task of {id}:\n{rows}\n{self.workspace.log('log')}")
        container = EngineContainer(self, f"prod/{name}/app", number, id=id)
        self.pods[container.name] = sandbox
        return container

    def remove(self, container: EngineContainer) -> None:
        """StopPodSandbox ends its containers too."""
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            self.runtime.call(method, {1: self.pods[container.name]})
