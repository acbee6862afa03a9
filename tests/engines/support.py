"""The table of engines in docs/engines.md: how a name becomes a pid, and how that is tested. A test checks that each
row's tests exist.
"""

from __future__ import annotations

ENGINE, LAYOUT, REFUSED = "engine test", "layout test", "refused"


class EngineRow:
    """An engine: its prefix, the way from name to pid, the kind of test, the rigs or tests, and remarks."""

    def __init__(self, engine: str, prefix: str, way: str, kind: str, tests: tuple[str, ...], note: str = "") -> None:
        """tests: names of rigs for an engine test, of test functions for the other kinds."""
        self.engine, self.prefix, self.way, self.kind, self.tests, self.note = engine, prefix, way, kind, tests, note


ROWS = (
    EngineRow(
        "Docker",
        "docker:NAME",
        "API on its socket",
        ENGINE,
        ("docker", "docker_remapped", "docker_snapshots"),
        "userns-remap too",
    ),
    EngineRow(
        *("Docker behind TCP on this machine", "docker:NAME", "the command `docker`", ENGINE, ("docker",)),
        "`$DOCKER_HOST` or a context with tcp://localhost",
    ),
    EngineRow(
        *("Docker, rootless", "docker:NAME", "API on `$XDG_RUNTIME_DIR/docker.sock`", ENGINE, ("docker_rootless",)),
        "root sees every user's below /run/user",
    ),
    EngineRow(
        *("Docker, remote by ssh", "docker:NAME", "`$DOCKER_HOST` or a context with ssh://", ENGINE, ("docker",)),
        "what this machine has not is looked for there, as by `--host`",
    ),
    EngineRow(
        *("Docker, remote by TCP", "docker:NAME", "`$DOCKER_HOST` or a context with tcp://", REFUSED),
        ("test_a_remote_docker_is_refused", "test_a_remote_context_is_refused_and_a_missing_one_named"),
        "run cntr on that machine",
    ),
    EngineRow(
        *("Docker in a VM or in Docker", "docker:NAME", "a socket whose daemon is in another pid namespace", REFUSED),
        ("test_a_socket_from_another_pid_namespace_is_refused",),
        "run cntr there",
    ),
    EngineRow(
        *(
            "Podman",
            "podman:NAME",
            "containers.json and pidfile; conmon's arguments",
            ENGINE,
            ("podman", "podman_newer"),
        ),
        "4.3 and 5.4",
    ),
    EngineRow(
        *("Podman, rootless", "podman:NAME", "the same, of each user", ENGINE, ("podman_rootless",)),
        "root sees every user's; a user's files count only for that user's own processes",
    ),
    EngineRow(
        *("Podman's pods", "podman:POD/CONTAINER", "db.sql; before version 5 the command `podman`", ENGINE),
        ("podman", "podman_newer"),
        "POD is enough for a pod of one container; its infra container does not count. Other users' pods: version 5 only",
    ),
    EngineRow(
        *(
            "Kubernetes on containerd",
            "k8s:NS/POD/CONTAINER",
            "CRI annotations in config.json, init.pid",
            ENGINE,
            ("k8s",),
        ),
        "POD, NS/POD, POD/CONTAINER, and beginnings of POD do too",
    ),
    EngineRow(
        *("Kubernetes on CRI-O", "k8s:NS/POD/CONTAINER", "k8s_… names in containers/storage", LAYOUT),
        ("test_crio", "test_crios_sandboxes_are_left_out"),
        "not in any Debian suite",
    ),
    EngineRow(
        *("Kubernetes, runtime with other directories", "k8s:NS/POD/CONTAINER", "the command `crictl`", LAYOUT),
        ("test_crictl",),
        "crictl is not in Debian",
    ),
    EngineRow("containerd", "containerd:NAME", "init.pid of its shims, all namespaces", ENGINE, ("containerd",)),
    EngineRow(
        *("containerd, state elsewhere", "containerd:NAME", "the command `ctr`", ENGINE, ("containerd",)),
        "`$CONTAINERD_ADDRESS` names its socket",
    ),
    EngineRow(
        "nerdctl", "nerdctl:NAME", "/var/lib/nerdctl/…/names", LAYOUT, ("test_nerdctl_names",), "not in Debian 12 or 13"
    ),
    EngineRow(
        "LXC",
        "lxc:NAME",
        "command socket of the monitor; title of the monitor",
        ENGINE,
        ("lxc",),
        "whatever the lxcpath",
    ),
    EngineRow("LXD", "lxd:NAME", "command socket of the monitor", ENGINE, ("lxd",), "PROJECT/NAME for other projects"),
    EngineRow(
        "Incus", "incus:NAME", "command socket of the monitor", ENGINE, ("incus",), "PROJECT/NAME for other projects"
    ),
    EngineRow(
        *("LXD's and Incus's VMs", "lxd:NAME, incus:NAME", "virtual-machines/NAME", REFUSED),
        ("test_virtual_machines_of_lxd_and_incus",),
        "run cntr in the guest",
    ),
    EngineRow("systemd-nspawn", "nspawn:NAME", "its process and that one's child", ENGINE, ("nspawn",)),
    EngineRow(
        *("systemd-nspawn, registered", "nspawn:NAME", "LEADER= in /run/systemd/machines/NAME", LAYOUT),
        ("test_nspawn_registered",),
        "registering needs systemd as pid 1",
    ),
    EngineRow(
        *("Buildah", "buildah:NAME", "a running `buildah run` by its root mount", ENGINE, ("buildah",)),
        "one that only is mounted: a session without a process of its own",
    ),
    EngineRow(
        "Apptainer", "apptainer:NAME", "instance file; title of its monitor", ENGINE, ("apptainer",), "USER/NAME too"
    ),
    EngineRow(
        "rkt",
        "rkt:UUID/APP",
        "pods/run/UUID/pid or ppid, the process in stage2",
        LAYOUT,
        ("test_rkt",),
        "dead since 2020",
    ),
    EngineRow("Sysbox", "sysbox:ID", "state.json below /run/sysbox-runc", LAYOUT, ("test_sysbox",), "not in Debian"),
    EngineRow("runc", "runc:ID", "state.json below /run/runc", ENGINE, ("runc",)),
    EngineRow("crun", "crun:ID", "status below /run/crun or /run/user/UID/crun", ENGINE, ("crun",)),
    EngineRow(
        *(
            "gVisor",
            "gvisor:ID",
            "state file below /run/runsc",
            REFUSED,
            ("test_a_sandbox_is_refused_with_what_to_do",),
        ),
        "the real runsc runs; its workload is no process of the host. The error names the directory of its files",
    ),
    EngineRow(
        *("Kata Containers", "kata:ID", "the shim's arguments; containerd's shim-binary-path", REFUSED),
        ("test_virtual_machines", "test_katas_containers_under_containerd"),
        "run cntr in the guest",
    ),
    EngineRow(
        "Firecracker, QEMU",
        "firecracker:ID",
        "the VMM's arguments",
        REFUSED,
        ("test_virtual_machines",),
        "run cntr in the guest",
    ),
    EngineRow("a process", "42, pid:42", "/proc", ENGINE, ("bwrap", "byhand"), "bubblewrap, chroot, unshare: anything"),
)


def table() -> str:
    lines = ["| engine | target | how the pid is found | tested by | to know |", "|---|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {row.engine} | `{row.prefix}` | {row.way} | {row.kind} | {row.note} |" for row in ROWS]
    )
