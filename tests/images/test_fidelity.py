"""A container looks the same to its processes under its engine and in a stand-in, except for what
docs/howto.md lists.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from testkit.engines import cri, rigs, workspaces
from testkit.engines.rigs_system import MAP
from tests.images.test_rootless import Native

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
KINDS = ("net", "user", "time")  # it has its own pid, ipc and uts namespaces
# What the container sees of its own configuration.
SEEN = r"""
id; umask; pwd; env | busybox sort; busybox hostname; cat /proc/sys/kernel/domainname /etc/hosts /etc/hostname /etc/resolv.conf
busybox grep -E "^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Sig(Blk|Ign)|Spec|THP)" /proc/self/status; busybox cut -c1-66 /proc/self/limits
for f in oom_score_adj personality uid_map gid_map timens_offsets timerslack_ns coredump_filter attr/current
do echo $f $(cat /proc/self/$f); done
cd /proc/sys
for f in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/msgmax fs/mqueue/msg_max; do echo $f $(cat $f); done
busybox ls /dev /sys/class/net /proc; stat -c "%n %a %u %g" / /tmp /dev/shm /tmpfs /vol /vol/f /ro 2>&1
busybox awk '{print "mount", $5, $6}' /proc/self/mountinfo
for n in KINDS; do echo $n $(busybox readlink /proc/self/ns/$n | busybox grep -cE "NUMBERS"); done
for f in /vol /ro / /tmpfs /proc/sys/kernel; do (: > $f/.w) 2>/dev/null && echo writes $f; done
(: >> /etc/hosts) 2>/dev/null && echo writes hosts
busybox cp /bin/busybox /tmpfs/true 2>/dev/null && /tmpfs/true && echo runs; busybox unshare -m true; busybox chown 1:1 /bin/. 2>&1; true
""".replace("KINDS", " ".join(KINDS)).replace(
    "NUMBERS", "|".join(str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in KINDS)
)
# A stand-in has no cgroup file system, its own nodes in /dev, a read-only /sys, and no image
# mounts; masked paths have other flags.
ALWAYS = r"[0-9]+$|mount (/sys.*|/proc.*|/|/dev|/dev/(null|zero|full|random|urandom|tty|console)|/other|/etc/motto|/sbin/docker-init) "
BOTH = """
-e A=b=c -e EMPTY= -e HOME=/h --hostname h1 --workdir /data --user slim --group-add 77 --read-only --tmpfs /tmpfs:rw,noexec,size=5m
--user 1234:4321 --cap-add SYS_ADMIN --cap-drop CHOWN -v @:/vol -v @:/ro:ro --oom-score-adj 300 --security-opt no-new-privileges
--security-opt seccomp=@/profile.json --sysctl kernel.msgmax=9000 --ulimit nofile=100:200 --tmpfs /tmpfs:exec --network container:PEER
--security-opt seccomp=unconfined --tty=false -v @/f:/vol -v @:/ro:ro --add-host db:10.0.0.1 --uts host
""".strip().splitlines()
NAMES = "--network BRIDGE --network-alias web --dns 10.0.0.2 --dns-search example.org --dns-option ndots:3 --add-host db:10.0.0.1"
ONLY = {
    "docker": """
--domainname example.org --shm-size 5m --mount type=tmpfs,dst=/tmpfs,tmpfs-size=1m
--security-opt systempaths=unconfined -v named:/vol --init
""" + NAMES,
    "podman": """
--umask 077 --systemd=always -v @:/vol:O -v @:/ro:ro,noexec,nosuid --tz Asia/Tokyo --tmpfs /tmpfs
--uidmap 0:300000:65536 --gidmap 0:300000:65536 --user 1000:1000 -v @:/ro:ro
--security-opt unmask=ALL --security-opt mask=/etc/motto --user slim --cap-add NET_ADMIN --mount type=image,src=scratch:1,dst=/other
--privileged --user 1000
""" + NAMES,
    "rootless": """
--userns keep-id --umask 077 --tmpfs /tmpfs:size=1m -v @:/vol
""",
}  # fmt: skip


def rows(text: str) -> list[str]:
    """Comparable lines: a stand-in mounts everything nodev."""
    found = [re.sub(r",?\bnodev\b", "", line).strip() for line in text.splitlines()]
    return sorted(line for line in found if line and not re.match(ALWAYS, line))


def differences(wanted: str, seen: str) -> tuple[list[str], list[str]]:
    """Lines that only the engine's own container has, and lines that only the stand-in has."""
    first, second = rows(wanted), rows(seen)
    assert len(first) > 40, wanted
    return [row for row in first if row not in second], [row for row in second if row not in first]


class Sight:
    """A rig, and cntr in an environment in which its engine is found."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.env = {**rig.workspace.env, **rig.settings, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
        self.env |= {
            "CONTAINERD_ADDRESS": str(getattr(rig, "socket", "")),
            "CNTR_LXC_ROOT": str(getattr(rig, "path", "")),
        }
        self.env.pop("TERM", None)

    def cntr(self, *words: str) -> str:
        """The output of cntr."""
        if isinstance(self.rig, Native):
            return self.rig.cntr(*words, as_user=True)
        done = subprocess.run(
            [sys.executable, "-m", "cntr", *words], env=self.env, cwd="/", capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def place_for_volumes(rig: rigs.Rig) -> pathlib.Path:
    """A directory with a file and a seccomp profile."""
    place = pathlib.Path(rig.workspace.path, "seen")
    place.mkdir()
    (place / "f").write_text("x\n")
    rule = {"names": ["chown", "fchownat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}
    (place / "profile.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    return place


@pytest.mark.parametrize("engine", ["docker", "podman", "rootless"])
def test_an_entrypoint_sees_what_it_sees_in_docker_and_podman(request, engine):
    """`cntr run` and `exec` beside the engine's own second start, which uses the same layer."""
    rig = Native() if engine == "rootless" else rigs.open_rig(request, engine)
    try:
        sight, place, wrong = Sight(rig), place_for_volumes(rig), {}
        peer, net = workspaces.unique("peer"), workspaces.unique("net")
        rig.command("run", "-d", *rig.extra, "--network", "none", "--name", peer, "slim:1", "/bin/sleep", "1000")
        has_net = engine != "rootless" and made_network(rig, net)
        for line in [*BOTH[: 1 if engine == "rootless" else None], *ONLY[engine].strip().splitlines()]:
            if "BRIDGE" not in line or has_net:
                flags = [
                    word.replace("@", str(place)).replace("PEER", peer).replace("BRIDGE", net) for word in line.split()
                ]
                found = one(sight, flags if "--network" in flags else ["--network", "none", *flags])
                if found:
                    wrong[line] = found
        rig.command("rm", "-f", *rig.remove_flags, peer)
        if has_net:
            rig.command("network", "rm", net)
        assert not wrong, "\n".join(map(str, wrong.items()))
    finally:
        if engine == "rootless":
            rig.stop()


def made_network(rig: Any, name: str) -> bool:
    """Whether the rig can make a bridge."""
    try:
        rig.command("network", "create", "--subnet", f"10.211.{os.getpid() % 250}.0/24", name)
    except workspaces.Failed:
        return False
    return True


def one(sight: Sight, flags: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """The differences for each command, for a container with FLAGS."""
    rig, name = sight.rig, workspaces.unique("seen")
    target, found = f"{rig.engine}:{name}", {}
    rig.command("run", *rig.extra, "--name", name, *flags, "slim:1", "/bin/sh", "-c", SEEN)
    with rigs.EngineContainer(rig, name, 0):
        wanted = ""
        asked = ("inspect", "--format", "{{.State.Status}} {{.Id}}", name)
        for start in (True, False):
            rig.workspace.wait_for("its end", lambda: rig.command(*asked).startswith("exited"))
            records, id = f"{rig.workspace.path}/oci", rig.command(*asked).split()[1]
            if os.path.exists(f"{records}/{id}"):  # conmon's cleanup does not get --runtime-flag
                workspaces.run([rig.runtime, "--root", records, "delete", "--force", id])
            wanted = rig.command("start", "-a", name) if start else wanted
        before = sorted(rig.command("diff", name).splitlines())
        script = ("--", "/bin/sh", "-c", SEEN)
        commands = (("run", "--network", "container", target), ("exec", "--network", "container", target, *script))
        for command in commands[: 1 if "container:" in " ".join(flags) else 2]:
            only = differences(wanted, sight.cntr(*command))
            # The engine's network no longer exists; the container's address is on lo.
            only = ([row for row in only[0] if row != "eth0" and not row.startswith("10.211.")],
                    [row for row in only[1] if not row.startswith("127.0.0.1")])  # fmt: skip
            if isinstance(rig, Native):
                # crun has /dev/core, and gives a tmpfs mode 1777 where runc uses the directory's.
                # With keep-id the user cannot read config.json, and /proc shows the map as its
                # parent namespace has it.
                unknown = r"/tmpfs |writes /tmpfs|core$" + (
                    "|[ug]id_map|HOME=|net/ipv4/ping_group_range" * ("keep-id" in flags)
                )
                only = tuple([row for row in side if not re.match(unknown, row)] for side in only)
            if "--privileged" in flags:  # except for the devices
                only = ([row for row in only[0] if " " in row], only[1])
            if only != ([], []):
                found[command[0]] = only
        assert sorted(rig.command("diff", name).splitlines()) == before
    return found


@pytest.mark.parametrize("engine", ["containerd", "k8s", "lxc"])
def test_a_session_sees_what_the_others_containers_saw(request, engine):
    """What it wrote itself is what `exec` shows; that always has a HOME and a PATH."""
    rig = rigs.open_rig(request, engine)
    sight, wrong = Sight(rig), {}
    for flags in OTHERS[engine]:
        with globals()[f"in_{engine}"](rig, flags) as container:
            wanted = sight.cntr("exec", container.target, "--", "/bin/cat", "/out")
            only = differences(wanted, sight.cntr("exec", container.target, "--", "/bin/sh", "-c", SEEN))
            if engine != "lxc":  # the daemon's default, plus one, if the configuration has none
                only = tuple([row for row in side if not row.startswith("oom_score_adj")] for side in only)
            if engine == "lxc":  # liblxc's /dev has other entries
                only = tuple(
                    [row for row in side if not re.search(r"/dev|^(HOME|PATH)=|^(console|mqueue|ptmx|shm)$", row)]
                    for side in only
                )
            if any(only):
                wrong[str(flags)] = only
    assert not wrong, "\n".join(map(str, wrong.items()))


WRITTEN = f"{{ {SEEN.strip()}\n}} > /out 2>/dev/null"
OTHERS: dict[str, list[Any]] = {
    "containerd": [["--env", "A=b", "--cap-add", "CAP_SYS_PTRACE", "--cwd", "/data"], ["--seccomp", "--allow-new-privs"]],
    "k8s": [0],
    "lxc": [
        ["lxc.cap.drop = sys_module net_raw", "lxc.mount.entry = tmpfs tmpfs tmpfs rw,nosuid,noexec,size=5m,create=dir 0 0",
         "lxc.environment = A=b", "lxc.prlimit.nofile = 100:200", "lxc.proc.oom_score_adj = 300", "lxc.no_new_privs = 1"],
        [f"lxc.idmap = u 0 {MAP} 65536", f"lxc.idmap = g 0 {MAP} 65536"],
    ],
}  # fmt: skip


def in_containerd(rig, flags) -> rigs.EngineContainer:
    """By ctr; its task has ended."""
    name = workspaces.unique("seen")
    cgroup = ("--cgroup", f"/{rig.workspace.mark}/{name}")
    workspaces.run(
        [*rig.cli, "run", *cgroup, *flags, "localhost/slim:1", name, "/bin/sh", "-c", WRITTEN], env=rig.workspace.env
    )
    return Ended(rig, name, 0)


class Ended(rigs.EngineContainer):
    """A container of ctr without a task."""

    def __exit__(self, *error: object) -> None:
        workspaces.run([*self.rig.cli, "container", "delete", self.name], env=self.rig.workspace.env)


def in_k8s(rig, user) -> rigs.EngineContainer:
    """A pod's container that has ended, and its sandbox."""
    name = workspaces.unique("seen")
    pod = cri.sandbox(name, "prod", f"uid-{name}", cgroup=f"/{rig.workspace.mark}", pid=cri.CONTAINER)
    sandbox = rig.runtime.call("RunPodSandbox", {1: pod})
    config = cri.container("app", "localhost/slim:1", ["/bin/sh", "-c", WRITTEN], pid=cri.CONTAINER, user=user)
    id = rig.runtime.call("CreateContainer", {1: sandbox, 2: config, 3: pod})
    rig.runtime.call("StartContainer", {1: id})
    status = pathlib.Path(rig.workspace.path, f"root/io.containerd.grpc.v1.cri/containers/{id}/status")
    rig.workspace.wait_for("its end", lambda: json.loads(status.read_text())["FinishedAt"] > 0)
    container = rigs.EngineContainer(rig, f"prod/{name}/app", 0, id=id)
    rig.pods[container.name] = sandbox
    return container


def in_lxc(rig, lines) -> rigs.EngineContainer:
    """A container that has written files, and is stopped."""
    name = workspaces.unique("seen")
    directory = pathlib.Path(rig.path, name)
    directory.mkdir()
    root = workspaces.busybox_root(f"{directory}/rootfs")
    pathlib.Path(root, "seen.sh").write_text(f"{WRITTEN}\n: > /done\nexec busybox sleep 1000\n")
    usual = [
        f"lxc.uts.name = {name}",
        f"lxc.rootfs.path = dir:{root}",
        "lxc.net.0.type = empty",
        "lxc.mount.auto = proc:mixed sys:mixed",
    ]
    usual += [f"lxc.cgroup.dir = {rig.workspace.mark}/{name}", "lxc.init.cmd = /bin/sh /seen.sh"]
    if "idmap" in lines[0]:
        workspaces.run(["chown", "-hR", f"{MAP}:{MAP}", root])
    (directory / "config").write_text("\n".join([*usual, *lines, ""]))
    at = ("-P", rig.path, "-n", name)
    workspaces.run(["lxc-start", *at, "-d", "-o", f"{directory}/log", "-l", "INFO"], env=rig.workspace.env)
    rig.workspace.wait_for("its output", lambda: os.path.exists(f"{root}/done"))
    workspaces.run(["lxc-stop", "-k", *at], env=rig.workspace.env)
    return Stopped(rig, name, 0)


class Stopped(rigs.EngineContainer):
    """A stopped container of LXC."""

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(f"{self.rig.path}/{self.name}")
