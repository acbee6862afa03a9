"""Rigs: real container engines, started by the tests themselves, offline and private, and slim containers in them.

How to use one (this module is a pytest plugin; the fixtures are session-scoped, one engine per xdist worker):

    def test_it(docker):                              # docker docker_remapped podman podman_rootless runc crun bwrap byhand
        with docker.box("scratch") as box:            # a variant of VARIANTS; a running container, gone after the block
            box.name, box.id, box.pid                 # what the engine itself says
            subprocess.run([..., "attach", box.target, ...], env=box.env)

``box.target`` is what a user would type (``docker:NAME``); ``box.env`` is the environment in which cntr finds the private
engine (DOCKER_HOST, CONTAINERS_STORAGE_CONF, CNTR_RUNC_ROOT, … set); inside a test ``box.use(monkeypatch)`` sets the same
for the test's own process. ``rig.variants`` names what the rig offers; ``rigs.CASES`` is the list of all (rig, variant)
pairs for a parametrize, ``rigs.open_rig(request, name)`` the fixture of a rig by its name. ``box.rootfs`` is the host's
view of the container's root directory where there is one, ``box.upper`` what the container changed in it (overlay).

A rig that can't run here is a skip that names the missing package, never a silent pass. Where an engine refuses to start
although it is installed, the test fails with the engine's log.

What the variants are:
    busybox       static busybox, /etc/passwd with user 1000 (slim, also in group 2000), cap defaults of the engine
    scratch       one static binary that waits: no shell, no /etc, no /tmp
    read_only     busybox, root mounted read-only
    unprivileged  busybox, uid 1000, no capabilities, no_new_privs
    host_net, host_pid   busybox in the host's network or pid namespace
    shared_pid    busybox in the pid namespace of another container: it is not pid 1
    paused        busybox, frozen after its start
    volume, tmpfs busybox with a host directory at /data (holding the file ``mark``), or a tmpfs there
    no_proc       no /proc mounted in the container
    keep_id       podman rootless only: the user's uid is the same inside, two levels of user namespace
    privileged    every capability
"""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.engines import rigging
from tests.engines.rigging import Den, Failed, cg1, run, unique

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
}


class Box:
    """A running container."""

    def __init__(self, rig: Rig, name: str, pid: int, *, id: str = "", rootfs: str = "", upper: str = "") -> None:
        """Keep what the engine said."""
        self.rig, self.name, self.pid, self.id, self.rootfs, self.upper = rig, name, pid, id or name, rootfs, upper
        self.target = f"{rig.engine}:{name}" if rig.engine != "pid" else str(pid)
        self.env = {**os.environ, **rig.settings}
        self.parts: list[Box] = []  # containers this one needs, removed after it

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Box:
        """Make the test's own process find the rig's engine."""
        for name, value in self.rig.settings.items():
            monkeypatch.setenv(name, value)
        return self

    def __enter__(self) -> Box:
        """The box itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the container, and those it was joined to."""
        self.rig.remove(self)
        for part in self.parts:
            part.rig.remove(part)


class Rig:
    """A real engine of the test's own. Subclasses say how it starts and how it makes and removes a container."""

    engine = ""  # the prefix of the target: engine:name
    needs: dict[str, str] = {}  # command → Debian package  # noqa: RUF012
    variants: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Make the den and start the engine. Skips, naming the package, where a command is missing."""
        missing = sorted({package for command, package in self.needs.items() if not shutil.which(command)})
        if os.geteuid() != 0:
            pytest.skip("needs root")
        if missing:
            pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
        self.den = Den()
        self.settings: dict[str, str] = {}
        try:
            self.start()
        except BaseException:
            self.den.close()
            raise

    def start(self) -> None:
        """Start the engine and import its images."""

    def box(self, variant: str = "busybox", *, name: str = "") -> Box:
        """A running container of VARIANT."""
        assert variant in self.variants, f"{type(self).__name__} has no {variant}"
        return self.make(variant, name or unique(variant.replace("_", "-")))

    def make(self, variant: str, name: str) -> Box:
        """Start the container."""
        raise NotImplementedError

    def remove(self, box: Box) -> None:
        """Remove the container, running or not."""
        raise NotImplementedError

    def stop(self) -> None:
        """End everything and leave nothing."""
        self.den.close()


class CliRig(Rig):
    """What Docker and Podman have in common: their command line."""

    def command(self, *arguments: str, timeout: float = 60) -> str:
        """Run the engine's CLI. Raises Failed."""
        return run([*self.cli, *arguments], env=self.den.env, timeout=timeout)

    cli: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # flags of every run

    def images(self) -> None:
        """Import the two images of every rig."""
        for image, make in (("slim:1", rigging.busybox_root), ("scratch:1", rigging.scratch_root)):
            root = make(f"{self.den.path}/image-{image[:-2]}")
            tarball = f"{root}.tar"
            run(["tar", "-C", root, "-cf", tarball, "."])
            os.chmod(tarball, 0o644)
            self.command("import", tarball, image)

    def make(self, variant: str, name: str) -> Box:
        """``run -d`` with the variant's flags."""
        flags, parts = [*self.extra, *CLI[variant]], []
        if variant != "host_net":
            flags += ["--network", "none"]
        if variant == "volume":
            directory = pathlib.Path(self.den.path, f"volume-{name}")
            directory.mkdir()
            (directory / "mark").write_text(f"{name}\n")
            flags += ["-v", f"{directory}:/data"]
        if variant == "shared_pid":
            parts.append(self.box("busybox"))
            flags += ["--pid", f"container:{parts[0].name}"]
        image = ["scratch:1", "/app"] if variant == "scratch" else ["slim:1", *WAIT]
        self.command("run", "-d", "--name", name, *flags, *image)
        if variant == "paused":
            self.command("pause", name)
        record = json.loads(self.command("inspect", name))[0]
        data = record.get("GraphDriver", {}).get("Data") or {}
        box = Box(
            self,
            name,
            record["State"]["Pid"],
            id=record["Id"],
            rootfs=data.get("MergedDir", ""),
            upper=data.get("UpperDir", ""),
        )
        box.parts = parts
        return box

    def remove(self, box: Box) -> None:
        """``rm -f``, unpaused before: a frozen process can't be killed on version 1 cgroups."""
        try:
            self.command("unpause", box.name)
        except Failed:
            pass
        self.command("rm", "-f", *self.remove_flags, box.name)

    remove_flags: tuple[str, ...] = ()


class Docker(CliRig):
    """dockerd with data, socket and containerd of its own; no network, no iptables."""

    engine = "docker"
    needs = {"dockerd": "docker.io", "docker": "docker.io", "busybox": "busybox-static"}  # noqa: RUF012
    variants = (
        *("busybox", "scratch", "read_only", "unprivileged", "host_net", "host_pid", "shared_pid"),
        *("paused", "volume", "tmpfs"),
    )
    flags: tuple[str, ...] = ()

    def prefix(self) -> tuple[str, ...]:
        """The command that dockerd runs under."""
        return ()

    def start(self) -> None:
        """Start dockerd, wait for its socket, import the images."""
        path = self.den.path
        socket = f"unix://{path}/docker.sock"
        # Two daemons must not share a containerd namespace's cgroup, and the cgroup's name lets the clean-up find it.
        flags = ["--data-root", f"{path}/data", "--exec-root", f"{path}/exec", "-p", f"{path}/docker.pid", "-H", socket]
        flags += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]
        flags += ["--cgroup-parent", f"/{self.den.mark}", *self.flags]
        process = self.den.daemon([*self.prefix(), "dockerd", *flags], log="log")
        self.settings = {"DOCKER_HOST": socket}
        self.cli = ("docker", "-H", socket)
        self.den.wait_for("dockerd", self._answers, process=process)
        self.images()

    def _answers(self) -> bool:
        return os.path.exists(f"{self.den.path}/docker.sock") and not subprocess.call(
            [*self.cli, "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.den.env
        )


class DockerRemapped(Docker):
    """dockerd --userns-remap: the container's root is an ordinary uid of the host."""

    variants = ("busybox", "scratch", "read_only", "unprivileged", "volume")
    flags = ("--userns-remap", "default")

    def prefix(self) -> tuple[str, ...]:
        """A view of /etc in which dockremap exists, so that the machine's own files stay as they are."""
        return rigging.users_view(self.den.path, [("dockremap", 29999)])


class Podman(CliRig):
    """Podman as root, with a store of its own; no daemon."""

    engine = "podman"
    needs = {"podman": "podman", "runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants = (*Docker.variants, "privileged")
    extra = rigging.ULIMITS
    remove_flags = ("-t", "0")
    runtime = "runc"  # runs on hybrid cgroups as they are

    def start(self) -> None:
        """Write the store's configuration, import the images."""
        path = self.den.path
        conf = f"{path}/storage.conf"
        pathlib.Path(conf).write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{path}/graph"\nrunroot = "{path}/run"\n'
        )
        self.settings = {"CONTAINERS_STORAGE_CONF": conf}
        self.den.env.update(self.settings)
        self.cli = (
            *self.prefix(),
            "podman",
            "--runtime",
            self.runtime,
            "--runtime-flag",
            f"root={path}/oci",
            *self.common(),
        )
        self.extra = (*rigging.ULIMITS, "--cgroup-parent", f"/{self.den.mark}")
        self.images()

    def common(self) -> tuple[str, ...]:
        """The flags before the subcommand."""
        tmp = f"{self.den.path}/libpod"
        return ("--cgroup-manager=cgroupfs", "--events-backend=file", "--tmpdir", tmp)

    def prefix(self) -> tuple[str, ...]:
        """The command that podman runs under."""
        return ()


class PodmanRootless(Podman):
    """Podman as an ordinary user with subordinate ids, in a view of /etc in which the user exists."""

    needs = {"podman": "podman", "crun": "crun", "newuidmap": "uidmap", "busybox": "busybox-static"}  # noqa: RUF012
    variants = ("busybox", "scratch", "read_only", "unprivileged", "host_net", "volume", "tmpfs", "keep_id")
    uid = 29998

    def start(self) -> None:
        """Make the user's home and runtime directory, import the images as the user."""
        path = self.den.path
        home, runtime = f"{path}/home-slim", f"{path}/runtime"
        for directory in (home, runtime):
            os.mkdir(directory, 0o700)
            os.chown(directory, self.uid, self.uid)
        os.mkdir(f"{path}/tmp", 0o1777)
        os.chmod(f"{path}/tmp", 0o1777)
        self.den.env = {
            "PATH": os.environ["PATH"],
            **{"HOME": home, "XDG_RUNTIME_DIR": runtime, "USER": "slim", "LOGNAME": "slim"},
            **{"CNTR_RIG": self.den.mark, "TMPDIR": f"{path}/tmp"},
        }
        view = rigging.users_view(path, [("slim", self.uid)])
        user = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all")
        self.cli = (*view, *user, "podman", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime", "crun")
        self.extra = rigging.ULIMITS
        os.chdir("/")
        self.images()


class Bundle(Rig):
    """runc and crun: a bundle and a config.json for each container."""

    needs = {"runc": "runc", "busybox": "busybox-static"}  # noqa: RUF012
    variants = ("busybox", "scratch", "read_only", "unprivileged", "host_net", "host_pid", "userns", "paused", "tmpfs")
    runtime = "runc"

    def start(self) -> None:
        """Make the two roots; there is no daemon."""
        path = self.den.path
        self.roots = {
            "busybox": rigging.busybox_root(f"{path}/slim"),
            "scratch": rigging.scratch_root(f"{path}/scratch"),
        }
        self.cli = (*self.prefix(), self.runtime, "--root", f"{path}/state")
        self.settings = {f"CNTR_{self.runtime.upper()}_ROOT": f"{path}/state"}

    def prefix(self) -> tuple[str, ...]:
        """The command that the runtime runs under."""
        return ()

    def make(self, variant: str, name: str) -> Box:
        """``run -d`` of a bundle."""
        bundle = pathlib.Path(self.den.path, f"bundle-{name}")
        bundle.mkdir()
        config = self.config(variant, name)
        (bundle / "config.json").write_text(json.dumps(config))
        command = [*self.cli, "run", "-d", "-b", str(bundle), "--pid-file", f"{bundle}/pid", name]
        log = f"{bundle}/log"
        with open(log, "wb") as stream:  # the container keeps these streams: a pipe would never see its end
            code = subprocess.call(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=self.den.env, timeout=60
            )
        if code:
            raise Failed(f"{' '.join(command)}: exit status {code}\n{pathlib.Path(log).read_text()}")
        box = Box(self, name, int((bundle / "pid").read_text()), rootfs=config["root"]["path"])
        if variant == "paused":
            run([*self.cli, "pause", name], env=self.den.env)
        return box

    def config(self, variant: str, name: str) -> dict:
        """The OCI runtime configuration of VARIANT."""
        root = self.roots["scratch" if variant == "scratch" else "busybox"]
        plain = variant == "unprivileged"
        capabilities = [] if plain else ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]
        namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts", "pid", "network")]
        namespaces = [n for n in namespaces if variant != f"host_{ {'network': 'net'}.get(n['type'], n['type']) }"]
        linux: dict = {"namespaces": namespaces, "cgroupsPath": f"/{self.den.mark}/{name}"}
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
            mounts = mounts[:2]  # runc itself needs a /proc in the container, to close its own fds; crun a /dev
        if variant == "tmpfs":
            mounts.append({"destination": "/data", "type": "tmpfs", "source": "tmpfs"})
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"],
                "cwd": "/",
                "env": ["PATH=/bin", f"BOX={name}"],
                "user": {"uid": 1000, "gid": 1000} if plain else {"uid": 0, "gid": 0},
                "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
                "noNewPrivileges": plain,
            },
            "root": {"path": root, "readonly": variant == "read_only"},
            "hostname": name if "uts" in {n["type"] for n in namespaces} else "",
            "mounts": mounts,
            "linux": linux,
        }

    def mapped_root(self, name: str) -> str:
        """A copy of the busybox root that belongs to the mapped root."""
        root = f"{self.den.path}/root-{name}"
        run(["cp", "-a", self.roots["busybox"], root])
        run(["chown", "-hR", "300000:300000", root])
        return root

    def remove(self, box: Box) -> None:
        """``delete --force``, thawed before."""
        try:
            run([*self.cli, "resume", box.name], env=self.den.env)
        except Failed:
            pass
        run([*self.cli, "delete", "--force", box.name], env=self.den.env)


class Runc(Bundle):
    """runc as it is."""

    engine = runtime = "runc"


class Crun(Bundle):
    """crun, which refuses hybrid cgroups: the unified hierarchy hidden."""

    engine = runtime = "crun"
    needs = {"crun": "crun", "busybox": "busybox-static"}  # noqa: RUF012

    def prefix(self) -> tuple[str, ...]:
        """Without the unified hierarchy."""
        return cg1()


class Bwrap(Rig):
    """bubblewrap: namespaces without an engine; the target is a pid."""

    engine = "pid"
    needs = {"bwrap": "bubblewrap", "busybox": "busybox-static"}  # noqa: RUF012
    variants = ("busybox", "scratch", "read_only", "no_proc")

    def start(self) -> None:
        """Make the two roots."""
        self.roots = {
            "busybox": rigging.busybox_root(f"{self.den.path}/slim"),
            "scratch": rigging.scratch_root(f"{self.den.path}/scratch"),
        }

    def make(self, variant: str, name: str) -> Box:
        """Start one bwrap; --info-fd tells the pid."""
        root = self.roots["scratch" if variant == "scratch" else "busybox"]
        reading, writing = os.pipe()
        flags = ["--unshare-all", "--as-pid-1", "--die-with-parent", "--info-fd", str(writing), "--hostname", name]
        flags += ["--ro-bind" if variant == "read_only" else "--bind", root, "/"]
        if variant in ("busybox", "read_only"):
            flags += ["--proc", "/proc", "--dev", "/dev"]
        argv = ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"]
        with open(f"{self.den.path}/log", "ab") as stream:
            process = subprocess.Popen(
                ["bwrap", *flags, "--", *argv],
                pass_fds=(writing,),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={"PATH": "/bin", "CNTR_RIG": self.den.mark, "BOX": name},
            )
        os.close(writing)
        with open(reading, "rb") as stream:
            text = stream.read()
        if not text:
            process.wait(timeout=10)
            raise Failed(f"bwrap {' '.join(flags)}: {self.den.log('log')}")
        self.den.daemons.append(process)
        box = Box(self, name, json.loads(text)["child-pid"], rootfs=root)
        self.den.wait_for("bwrap", lambda: os.readlink(f"/proc/{box.pid}/exe").startswith(("/app", "/bin/busybox")))
        return box

    def remove(self, box: Box) -> None:
        """Kill its pid 1; the namespaces end with it."""
        os.kill(box.pid, 9)


class ByHand(Rig):
    """Namespaces made by system calls (byhand.py), or a plain chroot: what no engine would do."""

    engine = "pid"
    needs = {"busybox": "busybox-static"}  # noqa: RUF012
    variants = ("busybox", "scratch", "chroot", "deleted_exe", "many_mounts", "shared_root")

    def start(self) -> None:
        """Make the two roots."""
        self.roots = {
            "busybox": rigging.busybox_root(f"{self.den.path}/slim"),
            "scratch": rigging.scratch_root(f"{self.den.path}/scratch"),
        }

    def make(self, variant: str, name: str) -> Box:
        """Run the steps of the variant in a shell that becomes the container's first process."""
        path = f"{self.den.path}/root-{name}"
        os.mkdir(path)
        source = self.roots["scratch" if variant == "scratch" else "busybox"]
        command = ["/app"] if variant == "scratch" else ["/bin/sleep", "100000"]
        if variant == "chroot":
            run(["cp", "-a", f"{source}/.", path])
        argv = [sys.executable, "-m", "tests.engines.byhand", variant, source, path, "--", *command]
        with open(f"{self.den.path}/log", "ab") as stream:
            process = subprocess.Popen(
                argv,
                cwd=pathlib.Path(__file__).parents[2],
                env={**self.den.env, "BOX": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
            )
        self.den.daemons.append(process)
        assert process.stdout
        with process.stdout:
            line = process.stdout.readline()
        if not line:
            raise Failed(f"by hand, {variant}: {self.den.log('log')}")
        return Box(self, name, int(line), rootfs=path)

    def remove(self, box: Box) -> None:
        """Kill it; its namespaces end with it."""
        os.kill(box.pid, 9)


RIGS: dict[str, type[Rig]] = {
    "docker": Docker,
    "docker_remapped": DockerRemapped,
    "podman": Podman,
    "podman_rootless": PodmanRootless,
    "runc": Runc,
    "crun": Crun,
    "bwrap": Bwrap,
    "byhand": ByHand,
}
CASES = [pytest.param(name, variant, id=f"{name}-{variant}") for name, rig in RIGS.items() for variant in rig.variants]


def _fixture(name: str, rig: type[Rig]):
    def fixture() -> Iterator[Rig]:
        started = rig()
        yield started
        started.stop()

    fixture.__doc__ = rig.__doc__
    return pytest.fixture(scope="session", name=name)(fixture)


docker, docker_remapped, podman, podman_rootless = (
    _fixture(name, RIGS[name]) for name in ("docker", "docker_remapped", "podman", "podman_rootless")
)
runc, crun, bwrap, byhand = (_fixture(name, RIGS[name]) for name in ("runc", "crun", "bwrap", "byhand"))


def open_rig(request: pytest.FixtureRequest, name: str) -> Rig:
    """The session's rig of that name, started if it is the first to be asked for."""
    return request.getfixturevalue(name)
