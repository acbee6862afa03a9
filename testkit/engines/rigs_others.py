"""The rigs of Buildah, Apptainer, gVisor and rootless Docker."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

from testkit.engines import newer, workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.rigs_cli import Docker
from testkit.engines.rigs_containerd import docker_archive
from testkit.engines.workspaces import run


class Buildah(Rig):
    """Buildah with a store of its own."""

    engine = "buildah"
    needs = {"buildah": "buildah", "runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "chroot", "rootfs")

    def start(self) -> None:
        """Write the store's configuration."""
        path = self.workspace.path
        conf = f"{path}/storage.conf"
        pathlib.Path(conf).write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{path}/graph"\nrunroot = "{path}/run"\n'
        )
        self.settings = {"CONTAINERS_STORAGE_CONF": conf}
        self.workspace.env.update(self.settings)
        del self.workspace.env["TMPDIR"]  # `buildah run` writes its pid file to /var/tmp
        self.root = workspaces.busybox_root(f"{path}/slim")

    def make(self, variant: str, name: str) -> EngineContainer:
        """``from scratch``, ``add``, ``mount``, and, unless only the files are wanted, ``run``."""
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]  # no limits above those available here
        run(["buildah", "from", *limits, "--name", name, "scratch"], env=self.workspace.env)
        run(["buildah", "add", name, self.root, "/"], env=self.workspace.env)
        merged = run(["buildah", "mount", name], env=self.workspace.env).strip()
        id = run(["buildah", "inspect", "--format", "{{.ContainerID}}", name], env=self.workspace.env).strip()
        if variant == "rootfs":
            return EngineContainer(self, name, 0, id=id, rootfs=merged)
        how = (
            ["--isolation", "chroot"]
            if variant == "chroot"
            else ["--isolation", "oci", "--runtime", "runc", "--network", "none"]
        )
        mark = f"10{os.getpid()}{len(self.workspace.daemons)}"  # seconds to sleep: identifies this sleep
        process = self.workspace.daemon(["buildah", "run", *how, name, "/bin/sleep", mark], log="log")
        found: list[int] = []

        def arrived() -> bool:
            wanted = f"/bin/sleep\0{mark}\0".encode()
            found[:] = [pid for pid in _pids() if _read(pid, "cmdline") == wanted and _read(pid, "comm") == b"sleep\n"]
            return bool(found)

        self.workspace.wait_for("buildah run", arrived, process=process)
        return EngineContainer(self, name, found[0], id=id, rootfs=merged)

    def remove(self, container: EngineContainer) -> None:
        """Kill what runs, unmount, remove."""
        if container.pid:
            os.kill(container.pid, 9)
            self.workspace.daemons[-1].wait(timeout=20)
        run(["buildah", "umount", container.name], env=self.workspace.env)
        run(["buildah", "rm", container.name], env=self.workspace.env)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(pid: int, file: str) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


class Apptainer(Rig):
    """Apptainer of Debian sid, from a cached root, as an ordinary user."""

    engine = "apptainer"
    needs = {"busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox",)
    uid = 29997

    def start(self) -> None:
        """Build the sandbox image as the user."""
        path = self.workspace.path
        workspaces.users_view(path, [("slim", self.uid)])  # for files that it writes
        home = f"{path}/home-slim"
        os.mkdir(home, 0o700)
        os.chown(home, self.uid, self.uid)
        files = [(f"{path}/etc-{name}", f"/etc/{name}") for name in ("passwd", "group", "subuid", "subgid")]
        self.cli = (*newer.prefix("sid", uid=self.uid, files=files), "apptainer", "-q")
        self.workspace.env = {
            **{"PATH": os.environ["PATH"], "HOME": home, "USER": "slim", "LOGNAME": "slim", "LC_ALL": "C"},
            **{"CNTR_RIG": self.workspace.mark, "APPTAINER_CONFIGDIR": f"{home}/.apptainer", "APPTAINER_TMPDIR": home},
        }
        self.settings = {"APPTAINER_CONFIGDIR": f"{home}/.apptainer"}
        archive = docker_archive(
            f"{path}/archive", workspaces.busybox_root(f"{path}/slim"), "localhost/slim:1", ["/bin/sh"]
        )
        self.image = f"{home}/image"
        run(
            [*self.cli, "build", "--userns", "--sandbox", self.image, f"docker-archive:{archive}"],
            env=self.workspace.env,
        )

    def make(self, variant: str, name: str) -> EngineContainer:
        """``instance start``; the pid of ``instance list``."""
        log = f"{self.workspace.path}/log"
        with open(log, "ab") as stream:  # the instance keeps these streams
            subprocess.run(
                [*self.cli, "instance", "start", "--userns", self.image, name],
                env=self.workspace.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                timeout=60,
                check=True,
            )
        rows = json.loads(run([*self.cli, "instance", "list", "--json"], env=self.workspace.env))["instances"]
        return EngineContainer(self, name, next(row["pid"] for row in rows if row["instance"] == name))

    def remove(self, container: EngineContainer) -> None:
        """``instance stop``."""
        run([*self.cli, "instance", "stop", "-t", "1", container.name], env=self.workspace.env)


class Gvisor(Rig):
    """gVisor's runsc: the workload is not a process of this host."""

    engine = "gvisor"
    needs = {"runsc": "runsc", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("sandboxed",)

    def start(self) -> None:
        """Make the root."""
        self.state = f"{self.workspace.path}/runsc"
        self.settings = {"CNTR_RUNSC_ROOT": self.state}
        self.root = workspaces.busybox_root(f"{self.workspace.path}/slim")

    def make(self, variant: str, name: str) -> EngineContainer:
        """``runsc run``, in the background."""
        bundle = pathlib.Path(self.workspace.path, f"bundle-{name}")
        bundle.mkdir()
        config = {
            "ociVersion": "1.0.0",
            "process": {
                "args": ["/bin/sleep", "100000"],
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": self.root},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}]},
        }
        (bundle / "config.json").write_text(json.dumps(config))
        self.cli = ("runsc", "--root", self.state, "--platform=ptrace", "--network=none", "--ignore-cgroups")
        # runsc chowns its standard streams to the sandbox's user (nobody): never pass it the machine's /dev/null.
        process = self.workspace.daemon(
            [*self.cli, "run", "-bundle", str(bundle), name], log="log", stdin=f"{bundle}/stdin"
        )
        self.workspace.wait_for("runsc", lambda: self._pid(name), process=process)
        return EngineContainer(self, name, self._pid(name), rootfs=self.root)

    def _pid(self, name: str) -> int:
        path = pathlib.Path(self.state, f"{name}_sandbox:{name}.state")
        if not path.exists():
            return 0
        record = json.loads(path.read_text() or "{}")
        return record["sandbox"]["pid"] if record.get("status") == "running" else 0

    def remove(self, container: EngineContainer) -> None:
        """``kill`` and ``delete``."""
        run([*self.cli, "kill", container.name, "KILL"], env=self.workspace.env)
        self.workspace.daemons[-1].wait(timeout=20)
        subprocess.call(
            [*self.cli, "delete", "-force", container.name], env=self.workspace.env, stderr=subprocess.DEVNULL
        )


class DockerRootless(Docker):
    """dockerd as an ordinary user, with rootlesskit."""

    needs = {**Docker.needs, "rootlesskit": "rootlesskit", "newuidmap": "uidmap"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox", "scratch", "read_only", "unprivileged", "volume")
    uid = 29996

    def start(self) -> None:
        """Start rootlesskit and dockerd below it, as the user."""
        path = self.workspace.path
        home, runtime = f"{path}/home-slim", f"{path}/runtime"
        for directory in (home, runtime):
            os.mkdir(directory, 0o700)
            os.chown(directory, self.uid, self.uid)
        socket = f"unix://{runtime}/docker.sock"
        user = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all")
        kit: tuple[str, ...] = ("rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave")
        kit += (f"--state-dir={runtime}/kit",)
        # Links that rootlesskit's copy-up takes from the host's engines belong to the real root: in the way, and not
        # removable later.
        script = 'rm -f /run/docker /run/containerd /run/xtables.lock; exec dockerd "$@"'
        flags = ["--rootless", "-H", socket, "--data-root", f"{home}/data", "--exec-root", f"{runtime}/docker"]
        flags += ["-p", f"{runtime}/docker.pid", "--iptables=false", "--ip6tables=false", "--bridge=none"]
        flags += ["--ip-forward=false", "--storage-driver=overlay2"]
        environment = {
            **{"PATH": os.environ["PATH"], "HOME": home, "XDG_RUNTIME_DIR": runtime, "USER": "slim", "LOGNAME": "slim"},
            "CNTR_RIG": self.workspace.mark,
        }
        view = workspaces.users_view(path, [("slim", self.uid)])
        process = self.workspace.daemon(
            [*view, *user, *kit, "sh", "-c", script, "sh", *flags], log="log", env=environment
        )
        self.settings = {"DOCKER_HOST": socket}
        self.cli = ("docker", "-H", socket)
        self.socket = f"{runtime}/docker.sock"
        self.workspace.wait_for("rootless dockerd", self._answers, process=process, seconds=60)
        self.images()
