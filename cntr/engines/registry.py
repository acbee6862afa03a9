"""The table of engines: prefixes, modules, and the paths whose existence shows that an engine was used here."""

from __future__ import annotations

import os
import sys

from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from cntr.engines.container import Container

    class EngineModule(Protocol):
        """The functions of an engine's module."""

        def find(self, name: str, deadline: float) -> list[Container]:
            """The running containers that match NAME."""

        def containers(self, deadline: float) -> list[Container]:
            """All running containers."""


class Entry:
    """A row of the registry: the prefix, the module, and the traces: paths (globs) whose existence shows that the
    engine was used here.

    A trace that starts with ``$`` names an environment variable, one with ``~`` is in the caller's home, one with ``@``
    is the end of an abstract socket's name. summary: shown by ``cntr doctor``; aliases: other prefixes.
    """

    __slots__ = ("aliases", "holds", "module", "name", "summary", "traces")

    def __init__(
        self,
        name: str,
        module: str,
        summary: str,
        *traces: str,
        aliases: tuple[str, ...] = (),
        holds: tuple[str, ...] | None = None,
    ) -> None:
        """holds: traces without which the engine cannot have container NAME; ``{}`` in them stands for the name."""
        self.name, self.module, self.summary, self.traces, self.aliases = name, module, summary, traces, aliases
        self.holds = traces if holds is None else holds

    def present(self) -> bool:
        """Whether one of the traces exists."""
        return any(_trace_exists(trace) for trace in self.traces)

    def may_have(self, name: str) -> bool:
        """Whether it may have a container called NAME; takes microseconds."""
        return any(_trace_exists(trace.replace("{}", name)) for trace in self.holds)

    def load(self) -> EngineModule:
        """Import the module."""
        __import__(self.module)
        return sys.modules[self.module]


_TASKS = "io.containerd.runtime.v2.task"
_STORAGE = (
    *("$CONTAINERS_STORAGE_CONF", "/var/lib/containers/storage/*/containers.json"),
    "/run/containers/storage/*/volatile-containers.json",
)

# If several engines know a process, the first one here names it: Docker's containers are also containerd's and runc's.
REGISTRY: tuple[Entry, ...] = (
    Entry(
        *("docker", "cntr.engines.docker", "Docker", "/run/docker.sock", "/run/user/*/docker.sock"),
        *("$DOCKER_HOST", "$DOCKER_CONTEXT", "$DOCKER_CONFIG", "~/.docker/contexts"),
    ),
    Entry(
        *(
            "podman",
            "cntr.engines.podman",
            "Podman",
            "$CONTAINERS_STORAGE_CONF",
            "/usr/bin/podman",
            "/var/lib/containers",
        ),
        holds=_STORAGE,
    ),
    Entry(
        *("k8s", "cntr.engines.kubernetes", "Kubernetes pods (containerd's CRI, CRI-O)"),
        *(
            f"/run/containerd/{_TASKS}/k8s.io",
            f"/run/k3s/containerd/{_TASKS}/k8s.io",
            f"/run/k0s/containerd/{_TASKS}/k8s.io",
        ),
        *(f"/var/snap/microk8s/common/run/containerd/{_TASKS}/k8s.io", "/run/crio", "$CNTR_CONTAINERD_ROOT"),
        aliases=("kubernetes", "cri", "crio", "cri-o", "containerd"),  # a pod's status has containerd://ID
    ),
    Entry(
        *("containerd", "cntr.engines.containerd", "containerd (ctr, nerdctl)"),
        *(f"/run/containerd/{_TASKS}", f"/run/k3s/containerd/{_TASKS}", f"/run/k0s/containerd/{_TASKS}"),
        *(f"/var/snap/microk8s/common/run/containerd/{_TASKS}", "$CNTR_CONTAINERD_ROOT"),
        *("/run/containerd/containerd.sock", "$CONTAINERD_ADDRESS"),
        aliases=("nerdctl", "ctr"),
        holds=(f"/run/containerd/{_TASKS}", f"/run/k3s/containerd/{_TASKS}", "$CNTR_CONTAINERD_ROOT"),
    ),
    Entry(
        *("lxc", "cntr.engines.lxc", "LXC, LXD, Incus", "/usr/bin/lxc-start", "/var/lib/lxc"),
        *("$LXD_DIR", "/var/lib/lxd", "/var/snap/lxd/common/lxd", "/usr/bin/lxd", "/usr/sbin/lxd"),
        *("$INCUS_DIR", "/var/lib/incus", "/usr/bin/incusd", "/usr/libexec/incus"),
        aliases=("lxd", "incus"),
        holds=("@/{}/command",),
    ),
    Entry(
        *("nspawn", "cntr.engines.nspawn", "systemd-nspawn", "/usr/bin/systemd-nspawn", "/run/systemd/machines"),
        holds=("/run/systemd/machines/{}", "/run/systemd/nspawn/propagate/{}"),
        aliases=("raw",),
    ),
    Entry(
        "apptainer",
        "cntr.engines.apptainer",
        "Apptainer",
        *("/usr/bin/apptainer", "/usr/bin/singularity"),
        *("/usr/local/bin/apptainer", "/usr/local/bin/singularity", "$APPTAINER_CONFIGDIR"),
        aliases=("singularity",),
        holds=("~/.apptainer/instances", "$APPTAINER_CONFIGDIR"),
    ),
    Entry("rkt", "cntr.engines.rkt", "rkt", "/var/lib/rkt", "$CNTR_RKT_ROOT"),
    Entry("sysbox", "cntr.engines.sysbox", "Sysbox", "/run/sysbox-runc", "$CNTR_SYSBOX_ROOT"),
    Entry("buildah", "cntr.engines.buildah", "Buildah", "/usr/bin/buildah", "$CONTAINERS_STORAGE_CONF", holds=_STORAGE),
    Entry(
        *("runc", "cntr.engines.runc", "runc", "$CNTR_RUNC_ROOT", "/run/runc", "/run/user/*/runc"),
        holds=("$CNTR_RUNC_ROOT", "/run/runc/{}*", "/run/user/*/runc"),  # an id, or a prefix of one
    ),
    Entry(
        *("crun", "cntr.engines.crun", "crun", "$CNTR_CRUN_ROOT", "/run/crun", "/run/user/*/crun"),
        holds=("$CNTR_CRUN_ROOT", "/run/crun/{}*", "/run/user/*/crun"),
    ),
    Entry(
        *("gvisor", "cntr.engines.sandboxed", "gVisor, Kata Containers, Firecracker and other virtual machines"),
        *("/run/runsc", "/usr/bin/runsc", "$CNTR_RUNSC_ROOT", "/dev/kvm"),
        aliases=("kata", "firecracker", "qemu"),
        holds=("/run/runsc", "$CNTR_RUNSC_ROOT"),
    ),
)


def _trace_exists(trace: str) -> bool:
    if trace.startswith("$"):
        return bool(os.environ.get(trace[1:]))
    if trace.startswith("@"):
        return f"{trace[1:]}\n" in procfs.read("/proc/net/unix")
    if trace.startswith("~"):
        return os.path.exists(os.environ.get("HOME", "/root") + trace[1:])
    if "*" not in trace:
        return os.path.exists(trace)
    head, star, tail = trace.partition("/*")  # one star for each path: a directory for each user or namespace
    if not star:
        head, _, start = trace[:-1].rpartition("/")
        return any(name.startswith(start) for name in listed(head))
    if not tail:
        return bool(listed(head))
    names = listed(head)
    if not names:
        return False
    from cntr.engines import trust  # not needed if no engine has ever run

    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo")) if head == "/run/user" else []
    # Only names are compared: the path may be the mount point of a user's file system that never answers.
    return any(
        tail[1:] in trust.some_names(f"{head}/{name}", tail[1:])
        for name in names
        if trust.answers(f"{head}/{name}", mounts)
    )


def listed(path: str) -> list[str]:
    """The names in a directory, none if it cannot be read."""
    try:
        return os.listdir(path or ".")
    except OSError:
        return []
