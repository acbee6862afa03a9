"""The table of engines: how a name becomes a pid, and how that is tested. docs/engines.md is generated from it.

``python -m tests.engines.support`` prints the file, ``--write`` writes it; a test holds them equal, and holds that each row's
tests exist.
"""

from __future__ import annotations

import pathlib
import sys

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/engines.md"
ENGINE, LAYOUT, REFUSED = "engine test", "layout test", "refused"


class Row:
    """An engine: its prefix, the way from name to pid, the kind of test, the rigs or tests that do it, what to know."""

    def __init__(self, engine: str, prefix: str, way: str, kind: str, tests: tuple[str, ...], note: str = "") -> None:
        """tests: names of rigs for an engine test, of test functions for the other kinds."""
        self.engine, self.prefix, self.way, self.kind, self.tests, self.note = engine, prefix, way, kind, tests, note


ROWS = (
    Row(
        "Docker",
        "docker:NAME",
        "API on its socket",
        ENGINE,
        ("docker", "docker_remapped", "docker_snapshots"),
        "userns-remap too",
    ),
    Row(
        *("Docker behind TCP on this machine", "docker:NAME", "the command `docker`", ENGINE, ("docker",)),
        "`$DOCKER_HOST` or a context with tcp://localhost",
    ),
    Row(
        *("Docker, rootless", "docker:NAME", "API on `$XDG_RUNTIME_DIR/docker.sock`", ENGINE, ("docker_rootless",)),
        "root sees every user's below /run/user",
    ),
    Row(
        *("Docker, remote", "docker:NAME", "`$DOCKER_HOST` or a context with tcp:// or ssh://", REFUSED),
        ("test_a_remote_docker_is_refused", "test_a_remote_context_is_refused_and_a_missing_one_named"),
        "run cntr on that machine",
    ),
    Row(
        *("Docker in a VM or in Docker", "docker:NAME", "a socket whose daemon is in another pid namespace", REFUSED),
        ("test_a_socket_from_another_pid_namespace_is_refused",),
        "run cntr there",
    ),
    Row(
        *(
            "Podman",
            "podman:NAME",
            "containers.json and pidfile; conmon's arguments",
            ENGINE,
            ("podman", "podman_newer"),
        ),
        "4.3 and 5.4",
    ),
    Row(
        *("Podman, rootless", "podman:NAME", "the same, of each user", ENGINE, ("podman_rootless",)),
        "root sees every user's; a user's files count only for that user's own processes",
    ),
    Row(
        *("Podman's pods", "podman:POD/CONTAINER", "db.sql; before version 5 the command `podman`", ENGINE),
        ("podman", "podman_newer"),
        "POD is enough for a pod of one container; its infra container does not count. Other users' pods: version 5 only",
    ),
    Row(
        *(
            "Kubernetes on containerd",
            "k8s:NS/POD/CONTAINER",
            "CRI annotations in config.json, init.pid",
            ENGINE,
            ("k8s",),
        ),
        "POD, NS/POD, POD/CONTAINER, and beginnings of POD do too",
    ),
    Row(
        *("Kubernetes on CRI-O", "k8s:NS/POD/CONTAINER", "k8s_… names in containers/storage", LAYOUT),
        ("test_crio", "test_crios_sandboxes_are_left_out"),
        "not in any Debian suite",
    ),
    Row(
        *("Kubernetes, runtime with other directories", "k8s:NS/POD/CONTAINER", "the command `crictl`", LAYOUT),
        ("test_crictl",),
        "crictl is not in Debian",
    ),
    Row("containerd", "containerd:NAME", "init.pid of its shims, all namespaces", ENGINE, ("containerd",)),
    Row(
        *("containerd, state elsewhere", "containerd:NAME", "the command `ctr`", ENGINE, ("containerd",)),
        "`$CONTAINERD_ADDRESS` names its socket",
    ),
    Row(
        "nerdctl", "nerdctl:NAME", "/var/lib/nerdctl/…/names", LAYOUT, ("test_nerdctl_names",), "not in Debian 12 or 13"
    ),
    Row(
        "LXC",
        "lxc:NAME",
        "command socket of the monitor; title of the monitor",
        ENGINE,
        ("lxc",),
        "whatever the lxcpath",
    ),
    Row("LXD", "lxd:NAME", "command socket of the monitor", ENGINE, ("lxd",), "PROJECT/NAME for other projects"),
    Row("Incus", "incus:NAME", "command socket of the monitor", ENGINE, ("incus",), "PROJECT/NAME for other projects"),
    Row(
        *("LXD's and Incus's VMs", "lxd:NAME, incus:NAME", "virtual-machines/NAME", REFUSED),
        ("test_virtual_machines_of_lxd_and_incus",),
        "run cntr in the guest",
    ),
    Row("systemd-nspawn", "nspawn:NAME", "its process and that one's child", ENGINE, ("nspawn",)),
    Row(
        *("systemd-nspawn, registered", "nspawn:NAME", "LEADER= in /run/systemd/machines/NAME", LAYOUT),
        ("test_nspawn_registered",),
        "registering needs systemd as pid 1",
    ),
    Row(
        *("Buildah", "buildah:NAME", "a running `buildah run` by its root mount", ENGINE, ("buildah",)),
        "one that only is mounted: a session without a process of its own",
    ),
    Row("Apptainer", "apptainer:NAME", "instance file; title of its monitor", ENGINE, ("apptainer",), "USER/NAME too"),
    Row(
        "rkt",
        "rkt:UUID/APP",
        "pods/run/UUID/pid or ppid, the process in stage2",
        LAYOUT,
        ("test_rkt",),
        "dead since 2020",
    ),
    Row("Sysbox", "sysbox:ID", "state.json below /run/sysbox-runc", LAYOUT, ("test_sysbox",), "not in Debian"),
    Row("runc", "runc:ID", "state.json below /run/runc", ENGINE, ("runc",)),
    Row("crun", "crun:ID", "status below /run/crun or /run/user/UID/crun", ENGINE, ("crun",)),
    Row(
        *(
            "gVisor",
            "gvisor:ID",
            "state file below /run/runsc",
            REFUSED,
            ("test_a_sandbox_is_refused_with_what_to_do",),
        ),
        "the real runsc runs; its workload is no process of the host. The error names the directory of its files",
    ),
    Row(
        *("Kata Containers", "kata:ID", "the shim's arguments; containerd's shim-binary-path", REFUSED),
        ("test_virtual_machines", "test_katas_containers_under_containerd"),
        "run cntr in the guest",
    ),
    Row(
        "Firecracker, QEMU",
        "firecracker:ID",
        "the VMM's arguments",
        REFUSED,
        ("test_virtual_machines",),
        "run cntr in the guest",
    ),
    Row("a process", "42, pid:42", "/proc", ENGINE, ("bwrap", "byhand"), "bubblewrap, chroot, unshare: anything"),
)

TEXT = """# Container engines

<!-- Generated by `python -m tests.engines.support --write`. -->

`cntr attach web` is enough: all engines found on the machine are asked at once, by their state files and sockets, and each
within 0.8 s; their commands only when those know nothing (see below). `cntr ps` lists what they know, `cntr doctor` says of
each what was found and where. A name that two containers answer to is an error that lists both; `docker:web`, or a longer id,
says which. An id may be shortened as long as it stays unique; an exact name goes before a shortened one.

{table}

*engine test*: the real engine is started by the tests, offline, and its containers are attached to on both transports,
exec'ed in, listed and inspected (what a command or a database tells, is found by name). *layout test*: the engine does not run
on the test machine; its state files are made by the test over a real process. *refused*: the test asserts the error.

## What does not run

| engine | found by | its files |
|---|---|---|
| Docker | the API, as the daemon's `docker inspect` has it | overlay2's layers, or containerd's snapshot |
| Podman | containers.json and config.json; `podman inspect`, or version 5's database | the layers; fuse-overlayfs' for their user alone |
| Buildah | containers.json and buildah.json | the layers |
| containerd, Kubernetes over it | `ctr`; pods by the annotations of CRI, its status file and its log | the snapshot |
| LXC | `/var/lib/lxc/NAME/config` with what it includes; lxc.lxcpath, `$CNTR_LXC_ROOT` | `dir:`, `btrfs:`, `overlay:` |
| LXD, Incus | the API | `containers/NAME/rootfs`, shifted as the pool's files are |
| systemd-nspawn | `/var/lib/machines` and its like, /etc/systemd/nspawn/NAME.nspawn; `$CNTR_NSPAWN_ROOT` | the directory, no raw image |

Docker's, Podman's and Buildah's are also each user's own. `tests/images` starts each of these engines, stops a container and looks into it.

## What counts as found

A state file may be stale, forged, or about another machine. So the process behind a pid must bear its container's mark (its
id in the cgroup path, in the sources of its mounts, or in its monitor's arguments) or have the start time that the engine
wrote down. A cgroup or a monitor counts by who made it, and a monitor's arguments only outside of containers. The start time is
checked again once a pidfd is open: a container that stopped, restarted or was replaced in between is an error, never another process.

## Who may claim what

A name leads to a process by root's own sources, or by a user's sources for that user's own processes alone: those that run as the user
(all four ids) in this user namespace, or in a user namespace that the user made. Root's sources are files, sockets and directories that
only root can change, all the way up; what others could have written there is refused, also where a variable of root's names it. Who
listens on a socket counts beside who owns its path.

Root asks for each user's engines (those with something in /run/user/UID, of whom a monitor runs, or whom a variable names) in a process
that has become that user, with 256 MiB of memory and 3 s of processor time: a user's JSON, databases and daemons are read there and
nowhere else. Root's containers go before a user's of the same name, or of a name that is the beginning of an id. Whoever attaches to a
user's container as root is told whose it is.

An engine of a third party (see below) is taken only from where nobody but root, or the caller, could have put it.

## Numbers, units

A bare number is the container that an engine calls so (LXC's and Proxmox's `101`); where a process of that number is in another
container, both are named as ambiguous. Without such a container it is the process, and one that is in no container is said to be a
process of this host. `pid:101` is always the process.

`unit:web` is the unit as systemd has it: a cgroup below slices alone, whatever directories users and containers make below theirs. A
user's unit is that user's word. Where a unit has several processes of its own, the main one is what systemctl says.

Names come from hostile places. They are matched and percent-encoded, never joined into a path without a check, never handed
to a command line, and never printed raw.

## The engines' commands, last of all

A command takes many times as long as a state file or a socket (`nox -s bench -- resolve` has them side by side). So `docker`,
`podman`, `crictl` and `ctr` are asked when nothing else knew the name, and only where they can know more: `podman` where a
conmon of the caller's runs (names of pods before version 5), `crictl` where a shim runs whose files are not in the usual
places, `ctr` where its daemon listens (it knows containers without a task), `docker` where its daemon listens on this
machine's loopback. All at once, within the same 0.8 s; then they are killed with all that they started. They list, and the
matching is done here. They are looked for in the system's directories, not in `$PATH`, and run only if they are root's and
nobody else may write to them or to a directory above them; without a terminal, their standard error unread. A pid that they
tell must bear its container's mark like any other.

Not asked, since they read what is read here and so never know more: `lxc-info`, `lxc`, `incus` (the monitors' sockets and titles,
whatever the lxcpath), `machinectl` (/run/systemd/machines), `apptainer` (its instance files and titles), `runc`, `crun`, `runsc`
(their state files), `buildah`, and `docker` for a Unix socket, also one that only a context names. `nerdctl` keeps its names in
files, and `ctr` tells the containers.

`cntr ps` asks no command.

## Where engines are looked for

| setting | what it is for |
|---|---|
| `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_CONFIG` | as for `docker`; without them the system's daemon and each user's |
| `CONTAINERS_STORAGE_CONF` | a storage.conf for Podman and Buildah beside the system's and the users' |
| `LXD_DIR`, `INCUS_DIR`, `APPTAINER_CONFIGDIR` | as for those programs |
| `CNTR_RUNC_ROOT`, `CNTR_CRUN_ROOT`, `CNTR_RUNSC_ROOT`, `CNTR_SYSBOX_ROOT`, `CNTR_RKT_ROOT` | more state directories, colon-separated |
| `CNTR_CONTAINERD_ROOT`, `CNTR_NERDCTL_ROOT` | more of containerd's `state` directories, of nerdctl's data directories |
| `CNTR_LXC_ROOT`, `CNTR_NSPAWN_ROOT` | more directories of LXC's and systemd-nspawn's, for what does not run |
| `CONTAINERD_ADDRESS` | the socket that `ctr` asks, for a containerd whose state is elsewhere |

`sudo` drops such variables: `sudo DOCKER_HOST=… cntr attach …`.

## An engine of your own

A Python package adds an engine by an entry point; the prefix is its name, and `cntr ps`, `doctor` and every command that takes
a target know it.

```toml
[project.entry-points."cntr.engines"]
pods = "pods_cntr"
```

```python
{example}
```

`deadline` is a `time.monotonic()` value. A module that may have to wait says `BLOCKING = True` and is asked in a thread of its
own; one that is there but can't answer raises `Refused("why, in one line")`. `find_by_process(name, deadline)` is optional: what
only a walk over all processes finds, asked when no engine knew the name.
"""


def document() -> str:
    """The text of docs/engines.md."""
    from tests.engines.test_names import MODULE

    lines = ["| engine | target | how the pid is found | tested by | to know |", "|---|---|---|---|---|"]
    lines += [f"| {row.engine} | `{row.prefix}` | {row.way} | {row.kind} | {row.note} |" for row in ROWS]
    return TEXT.format(table="\n".join(lines), example=MODULE.strip())


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(document())
    else:
        print(document())
