"""Rigs: real container engines, started by the tests themselves, offline and private, and slim containers in them.

How to use one (this module is a pytest plugin; the fixtures are session-scoped, one engine per xdist worker):

    def test_it(docker):                              # a key of RIGS
        with docker.container("scratch") as container:  # a variant of VARIANTS; a running container, gone after the block
            container.name, container.id, container.pid                 # what the engine itself says
            subprocess.run([..., "attach", container.target, ...], env=container.env)

``container.target`` is what a user would type (``docker:NAME``); ``container.env`` is the environment in which cntr finds the private
engine (DOCKER_HOST, CONTAINERS_STORAGE_CONF, CNTR_RUNC_ROOT, … set); inside a test ``container.use(monkeypatch)`` sets the same
for the test's own process. ``rig.variants`` names what the rig offers; ``rigs.CASES`` is the list of all (rig, variant)
pairs for a parametrize, ``rigs.open_rig(request, name)`` the fixture of a rig by its name. ``container.rootfs`` is the host's
view of the container's root directory where there is one, ``container.upper`` what the container changed in it (overlay).

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
    volume, tmpfs  busybox with a host directory at /data (holding the file ``mark``), or a tmpfs there
    no_proc       no /proc mounted in the container
    keep_id       podman rootless only: the user's uid is the same inside, two levels of user namespace
    privileged    every capability
    userns        root of the container is an ordinary uid of the host, by id maps of the engine
    as_pid2       nspawn: the command is pid 2, pid 1 is systemd's stub
    chroot        no namespaces at all, another root (byhand); Buildah's isolation of that name
    deleted_exe, many_mounts, shared_root  byhand: the program is unlinked; 2000 mounts; root is a shared mount
    rootfs        Buildah: a mounted root directory, no process
    sandboxed     gVisor: the workload is no process of this host
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.rigs_cli import Docker, DockerRemapped, DockerSnapshots, Podman, PodmanNewer, PodmanRootless
from testkit.engines.rigs_containerd import Containerd, Kubernetes
from testkit.engines.rigs_others import Apptainer, Buildah, DockerRootless, Gvisor
from testkit.engines.rigs_runtimes import Bwrap, ByHand, Crun, Runc
from testkit.engines.rigs_system import Incus, Lxc, Lxd, Nspawn

__all__ = ["CASES", "RIGS", "EngineContainer", "Rig", "open_rig"]

RIGS: dict[str, type[Rig]] = {
    "docker": Docker,
    "docker_remapped": DockerRemapped,
    "docker_snapshots": DockerSnapshots,
    "podman": Podman,
    "podman_newer": PodmanNewer,
    "podman_rootless": PodmanRootless,
    "runc": Runc,
    "crun": Crun,
    "containerd": Containerd,
    "k8s": Kubernetes,
    "lxc": Lxc,
    "lxd": Lxd,
    "incus": Incus,
    "nspawn": Nspawn,
    "docker_rootless": DockerRootless,
    "buildah": Buildah,
    "apptainer": Apptainer,
    "gvisor": Gvisor,
    "bwrap": Bwrap,
    "byhand": ByHand,
}
CASES = [pytest.param(name, variant, id=f"{name}-{variant}") for name, rig in RIGS.items() for variant in rig.variants]


def _fixture(name: str, rig: type[Rig]) -> Any:
    def fixture() -> Iterator[Rig]:
        started = rig()
        yield started
        started.stop()

    fixture.__doc__ = rig.__doc__
    return pytest.fixture(scope="session", name=name)(fixture)


for _name, _rig in RIGS.items():
    globals()[_name] = _fixture(_name, _rig)


def pytest_configure(config: pytest.Config) -> None:
    """Tests that repeat a path on one more variant are ``slow``: ``-m "not slow"`` leaves them out."""
    config.addinivalue_line("markers", "slow: one more variant of what another test shows already")


def open_rig(request: pytest.FixtureRequest, name: str) -> Any:
    """The session's rig of that name, started if it is the first to be asked for."""
    return request.getfixturevalue(name)
