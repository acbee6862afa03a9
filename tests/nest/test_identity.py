"""A session's identity: the properties of the target's process that it takes over, and those that it must not."""

from __future__ import annotations

import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import pytest

from cntr.linux import process, procfs, syscalls
from testkit.container import DOCKER_DEFAULT
from testkit.container import NAMESPACES as OF_A_CONTAINER
from testkit.processes import running
from testkit.waiting import wait_until
from tests.nest.busybox import REPOSITORY, BusyboxContainer, ask, one_line_and_hint, run, session

PTRACE = 1 << 19
CHOWN, NET_RAW = 1 << 0, 1 << 13
PASSWD = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nslim:x:1000:1001::/home/slim:/bin/sh\nlast:x:65534:65534::/:/x\n",
    "/etc/group": "root:x:0:\nslim:x:1001:\nextra:x:2000:slim,other\nmore:x:2001:slim\n",
}


def status(container: BusyboxContainer, *arguments: str) -> dict[str, str]:
    return procfs.status(container.sh("cat /proc/self/status", *arguments))


def capabilities(fields: dict[str, str]) -> dict[str, int]:
    return {kind: int(fields[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


NAMESPACES = ("pid", "net", "ipc", "uts", "user", "cgroup", "time")


def test_every_namespace_is_the_containers_but_the_mount_namespace_is_nested():
    with BusyboxContainer(
        namespaces=0x7E020000 & ~syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWCGROUP | syscalls.CLONE_NEWTIME
    ) as container:
        for kind in NAMESPACES:
            theirs = os.readlink(f"/proc/{container.pid}/ns/{kind}")
            # unshare(CLONE_NEWTIME) moves only children, such as the container's first process.
            assert container.sh(f"readlink /proc/self/ns/{kind}").strip() == theirs, kind
        mnt = container.sh("readlink /proc/self/ns/mnt").strip()
        assert mnt not in (os.readlink(f"/proc/{container.pid}/ns/mnt"), os.readlink("/proc/self/ns/mnt"))
        assert os.readlink(f"/proc/{container.pid}/ns/time") != os.readlink("/proc/self/ns/time")


def test_only_the_namespaces_that_differ_are_joined():
    """With a container in the host's network, pid, ipc and uts namespaces (--network host --pid host …)."""
    with BusyboxContainer(namespaces=syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS) as container:
        for kind in ("pid", "net", "ipc"):
            assert container.sh(f"readlink /proc/self/ns/{kind}").strip() == os.readlink(f"/proc/self/ns/{kind}")
        assert container.sh("hostname") == "demo\n"


def test_the_shell_itself_is_in_the_containers_pid_namespace():
    with BusyboxContainer() as container, session(str(container.pid)) as shell:
        pid = ask(shell, "echo $$")
        assert ask(shell, "cut -d' ' -f1 /proc/$$/stat") == pid
        assert int(pid) < 100, "pids of a young pid namespace"
        assert ask(shell, "grep NSpid /proc/$$/status").split()[1:] == [pid]
        assert ask(shell, "readlink /proc/$$/ns/pid") == os.readlink(f"/proc/{container.pid}/ns/pid")


CAPABILITY_CASES = {
    "docker_default": ({}, (), DOCKER_DEFAULT | PTRACE, DOCKER_DEFAULT | PTRACE, PTRACE),
    "cap_drop_all": ({"capabilities": 0}, (), PTRACE, PTRACE, PTRACE),
    "a_few": ({"capabilities": CHOWN | NET_RAW}, (), CHOWN | NET_RAW | PTRACE, CHOWN | NET_RAW | PTRACE, PTRACE),
    "uid_1000": ({"uid": 1000}, (), PTRACE, DOCKER_DEFAULT | PTRACE, PTRACE),
    "uid_1000_ambient": (
        {"uid": 1000, "ambient": NET_RAW},
        (),
        NET_RAW | PTRACE,
        DOCKER_DEFAULT | PTRACE,
        NET_RAW | PTRACE,
    ),
    "root_as_1000": ({}, ("--user", "1000"), PTRACE, DOCKER_DEFAULT | PTRACE, PTRACE),
    "1000_as_root": ({"uid": 1000}, ("--user", "0"), DOCKER_DEFAULT | PTRACE, DOCKER_DEFAULT | PTRACE, PTRACE),
}


@pytest.mark.parametrize("case", CAPABILITY_CASES)
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_capability_sets_are_the_containers_and_the_one_that_keeps_it_out(case, no_new_privs):
    properties, flags, permitted, bounding, ambient = CAPABILITY_CASES[case]
    with BusyboxContainer(no_new_privs=no_new_privs, **properties) as container:
        fields = status(container, *flags)
        found = capabilities(fields)
        assert (found["Prm"], found["Eff"]) == (permitted, permitted)
        assert found["Bnd"] == bounding
        assert found["Amb"] == ambient
        assert found["Inh"] == ambient
        assert fields["NoNewPrivs"] == "1", "a set-id program would lose the capability that keeps the container out"
        done = container.exec("--", "/bin/cat", "/proc/self/status")
        assert procfs.status(done.stdout)["NoNewPrivs"] == str(int(no_new_privs))


@pytest.mark.parametrize("properties", [{}, {"capabilities": 0}, {"uid": 1000}, {"uid": 1000, "ambient": NET_RAW}])
def test_exec_has_exactly_the_containers_capabilities(properties):
    with BusyboxContainer(**properties) as container:
        done = container.exec("--", "/bin/cat", "/proc/self/status")
        theirs = procfs.status(procfs.read(f"/proc/{container.pid}/status"))
        assert capabilities(procfs.status(done.stdout)) == capabilities(theirs)


def test_privileged_keeps_the_hosts_capabilities():
    with BusyboxContainer(capabilities=0, no_new_privs=True) as container:
        fields = status(container, "--privileged")
        own = procfs.status(procfs.read("/proc/self/status"))
        assert capabilities(fields)["Prm"] == capabilities(own)["Prm"]
        assert fields["NoNewPrivs"] == "0"


def test_ids_and_supplementary_groups():
    with BusyboxContainer(uid=1000, gid=1001, groups=(7, 2000), files=PASSWD) as container:
        fields = status(container)
        assert fields["Uid"].split() == ["1000"] * 4
        assert fields["Gid"].split() == ["1001"] * 4
        assert fields["Groups"].split() == ["7", "2000"]


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        ("slim", 1000, 1001, ["2000", "2001"]),
        ("1000", 1000, 1001, ["2000", "2001"]),
        ("slim:0", 1000, 0, []),
        ("slim:extra", 1000, 2000, []),
        ("4711:815", 4711, 815, []),
        ("0", 0, 0, []),
        ("123", 123, 0, []),
    ],
)
def test_user_option(user, uid, gid, groups):
    """The groups of the container's /etc/group are for its own files; for the tools', only the groups of its process
    count.
    """
    files = {**PASSWD, "/etc/passwd": "123:x:0:0::/:/bin/sh\n" + PASSWD["/etc/passwd"]}  # CVE-2016-3697
    with BusyboxContainer(files=files, groups=(2001, 7)) as container:
        fields = status(container, "--user", user)
        assert (fields["Uid"].split()[0], fields["Gid"].split()[0]) == (str(uid), str(gid))
        assert fields["Groups"].split() == [group for group in groups if group == "2001"]
        own = procfs.status(container.exec("--user", user, "--", "/bin/cat", "/proc/self/status").stdout)
        assert (own["Uid"].split()[0], own["Groups"].split()) == (str(uid), groups)


@pytest.mark.parametrize(
    ("line", "gid", "home"),
    [
        ("app:x:1000:1001::/home/app:/bin/sh", 1001, "/home/app"),
        ("app:x:1000:1001::/home/app", 1001, "/home/app"),
        ("app:x:1000:1001::/home/app:/bin/sh:more", 1001, "/home/app"),
        ("  app:*:01000:1001::/home/app:\r", 1001, "/home/app"),
        ("app:x:1000:1001", 1001, "/"),
        ("app:x:1000:1001:::", 1001, "/"),
        ("app:x:1000", 0, "/"),
        ("+::::::\n#app:x:1\napp\napp:x:x:1:::\napp:x:1000:1001", 1001, "/"),
        (
            "\n".join(f"user{n}:x:{n + 2000}:{n + 2000}:{'x' * 100}:/:/bin/sh" for n in range(30000))
            + "\napp:x:1000:1001",
            1001,
            "/",
        ),
    ],
    ids=["whole", "six", "eight", "spaces", "four", "empty", "three", "others", "big"],
)
def test_lines_of_passwd_that_engines_take(line, gid, home):
    """With fields that are missing or too many, as Dockerfiles write them by `echo … >> /etc/passwd`; by name and number."""
    files = {
        "/etc/passwd": f"root:x:0:0::/root:/bin/sh\n{line}",
        "/etc/group": "a:x:2000:app\nb:x:2001:x,app,\nc:x:2002",
    }
    script = "grep -E '^(Uid|Gid|Groups)' /proc/self/status; echo $HOME"
    with BusyboxContainer(files=files) as container:
        for user in ("app", "1000"):
            words = container.exec("--user", user, "--", "/bin/sh", "-c", script).stdout.split()
            assert (words[1], words[6], words[11:]) == ("1000", str(gid), ["2000", "2001", home]), user
            assert container.exec(f"-u={user}", "--", "/bin/id", "-u").stdout == "1000\n", "as docker takes it"
        words = container.exec("--user", "app:c", "--", "/bin/sh", "-c", script).stdout.split()
        assert (words[6], words[11:]) == ("2002", [home]), "a group that is given is the only one"
        words = container.exec("--user", "999999", "--", "/bin/sh", "-c", script).stdout.split()
        assert (words[1], words[6], words[11:]) == ("999999", "0", ["/"]), "not the home of the container's own user"
        assert container.attach("--user", "app", "--", "id", "-un").stdout in ("app\n", "uid1000\n")


@pytest.mark.parametrize(
    "user",
    ["nobody-here", "slim:nogroup", "-1", "4294967295", "99999999999", "", ":0", "0:", "٣", "0:4294967295", "slim:-1"],
)
def test_a_user_that_is_none(user):
    with BusyboxContainer(files=PASSWD) as container:
        message = one_line_and_hint(container.attach("--user", user, "--", "true"))
        assert "--user" in message


def test_resource_limits_and_oom_score():
    limits = {
        resource.RLIMIT_NOFILE: (200, 300),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NPROC: (1000, 2000),
        resource.RLIMIT_STACK: (1 << 20, 1 << 22),
    }
    with BusyboxContainer(limits=limits, oom_score_adj=321) as container:
        assert container.sh("cat /proc/self/limits") == procfs.read(f"/proc/{container.pid}/limits")
        assert container.exec("--", "/bin/cat", "/proc/self/limits").stdout == procfs.read(
            f"/proc/{container.pid}/limits"
        )
        assert container.exec("--", "/bin/cat", "/proc/self/oom_score_adj").stdout == "321\n"
        assert container.sh("cat /proc/self/oom_score_adj") == "1000\n", (
            "when memory runs out, the session is killed first"
        )
        assert container.sh("cat /proc/self/oom_score_adj", "--privileged") == "1000\n"


@pytest.mark.parametrize("flags", [(), ("--privileged",)])
def test_a_session_leaves_no_core_file_whatever_limit_the_container_lifts(flags):
    """Its root may raise a soft limit of any process with its uid (prlimit(2))."""
    with BusyboxContainer() as container, session(str(container.pid), *flags) as shell:
        ask(shell, "sleep 987.5 & echo $!")
        line = next(
            line for line in procfs.read(f"/proc/{_pid_of('sleep', '987.5')}/limits").splitlines() if "core" in line
        )
        assert line.split()[4:6] == ["0", "0"]
        done = container.exec("--", "/bin/sh", "-c", "ulimit -Hc")
        assert done.stdout.strip() == _hard_core_limit(container)


def _pid_of(*argv: str) -> str:
    """Wait for the process that runs ARGV; return its pid."""
    wanted, deadline = "\0".join(argv), time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if procfs.read(f"/proc/{pid}/cmdline").strip("\0") == wanted:
                    return pid
            except OSError:
                continue
    raise AssertionError(f"{argv} does not run")


def _hard_core_limit(container: BusyboxContainer) -> str:
    hard = procfs.limits(procfs.read(f"/proc/{container.pid}/limits"))[resource.RLIMIT_CORE][1]
    return "unlimited" if hard < 0 else str(hard // 512)  # in blocks of 512 bytes, by sh


@pytest.mark.parametrize("limit", ["AS", "DATA", "STACK", "FSIZE", "CPU", "NPROC", "NOFILE"])
def test_limits_that_nothing_runs_under_do_not_end_a_session_with_a_bare_status(limit):
    number = getattr(resource, f"RLIMIT_{limit}")
    low = 30 if limit == "CPU" else 0
    with BusyboxContainer() as container:
        resource.prlimit(container.pid, number, (low, low))
        for command in (("attach", str(container.pid), "--", "sh"), ("exec", str(container.pid), "--", "/bin/sh")):
            done = run(*command, "-c", "echo here; exit 3")
            assert (done.returncode, done.stdout) == (3, "here\n"), done
            assert f"nothing would run under pid:{container.pid}'s RLIMIT_{limit} {low}: raised" in done.stderr


WITH_A_KEY = """
import ctypes, os, sys
from cntr.linux import process
process.join_new_session_keyring()
libc, keyctl = ctypes.CDLL(None, use_errno=True), process._SYS_KEYCTL
key = libc.syscall(keyctl - 2, b"user", b"callers-ticket", b"x", 1, -3)  # add_key(2), KEY_SPEC_SESSION_KEYRING
assert key > 0 and libc.syscall(keyctl, 5, key, 0x3F000000) == 0  # KEYCTL_SETPERM: for who possesses it
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_the_umask(tmp_path, transport):
    """A session has the caller's, with which a user other than root can still enter the session's directories; exec has
    the container's.
    """
    strict = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    base, shared = "/opt/not/there", tmp_path / "below" / "shared"
    shared.mkdir(parents=True)
    with BusyboxContainer(uid=1000, as_root=lambda: os.umask(0o027)) as container:
        script = f"umask; ls {base}/bin/sh; ls -d {shared}"
        words = ["--transport", transport, "--share", str(shared), "--", "sh", "-c", script]
        done = container.attach(*words, prefix=strict, env={"CNTR_BASE_DIR": base})
        assert (done.stdout.split(), done.stderr) == (["0077", f"{base}/bin/sh", str(shared)], "")
        assert container.exec("--", "sh", "-c", "umask", prefix=strict).stdout == "0027\n"


@pytest.mark.parametrize("command", ["attach", "exec"])
def test_the_session_keyring_is_none_of_the_callers(command):
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel was built without keys (CONFIG_KEYS)")
    with BusyboxContainer() as container:
        wrap = [sys.executable, "-c", WITH_A_KEY]
        assert "callers-ticket" in subprocess.check_output([*wrap, "cat", "/proc/keys"], text=True, cwd=REPOSITORY)
        done = run(command, str(container.pid), "--", "/bin/cat", "/proc/keys", prefix=wrap)
        assert "callers-ticket" not in done.stdout
        assert "_ses: empty" in done.stdout, done


def test_exec_takes_the_personality_over_and_a_session_does_not():
    def as_root() -> None:
        process.set_personality(0x0040000 | 8)  # ADDR_NO_RANDOMIZE, PER_LINUX32

    with BusyboxContainer(as_root=as_root) as container:
        assert container.exec("--", "/bin/cat", "/proc/self/personality").stdout.strip() == "00040008"
        assert container.sh("cat /proc/self/personality").strip() == "00000000"


@pytest.mark.skipif(shutil.which("setarch") is None, reason="not installed: setarch")
@pytest.mark.parametrize("words", [["exec"], ["attach"], ["attach", "--transport", "fuse"]], ids=" ".join)
def test_the_callers_personality_is_nobodys(words):
    """Under setarch(8) uname(2) names the 32-bit machine, whose system calls have other numbers, and a random layout is switched off."""
    with BusyboxContainer() as container:
        prefix = ["setarch", "linux32", "-R"]
        script = "cat /proc/self/personality"
        done = run(words[0], str(container.pid), *words[1:], "--", "sh", "-c", script, prefix=prefix)
        assert (done.stdout, done.stderr) == ("00000000\n", ""), done


class Inner(BusyboxContainer):
    """Its process has unshared a user namespace, in which it is root with every capability."""

    def _drop(self) -> None:
        super()._drop()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
            pathlib.Path(f"/proc/self/{name}").write_text(text)


def test_a_session_stays_outside_of_a_user_namespace_that_the_container_made():
    """In it, processes of the parent namespace have every capability: the container's other processes."""
    with Inner() as container:
        assert os.readlink(f"/proc/{container.pid}/ns/user") != os.readlink("/proc/self/ns/user"), (
            "the check must be able to fail"
        )
        done = container.attach("--", "sh", "-c", "readlink /proc/self/ns/user; cat /proc/self/status")
        assert "is in a user namespace that it made itself" in done.stderr
        assert done.stdout.splitlines()[0] == os.readlink("/proc/self/ns/user")
        found = capabilities(procfs.status(done.stdout))
        assert (found["Prm"], found["Bnd"]) == (PTRACE, PTRACE)
        own = container.exec("--", "/bin/readlink", "/proc/self/ns/user").stdout.strip()
        assert own == os.readlink(f"/proc/{container.pid}/ns/user"), "its own command runs in its user namespace"


def test_beside_the_hosts_own_processes_a_session_cannot_trace():
    with BusyboxContainer(namespaces=OF_A_CONTAINER & ~syscalls.CLONE_NEWPID) as container:
        fields = status(container)
        assert not any(mask & PTRACE for mask in capabilities(fields).values())
        assert fields["Seccomp"] == "2", "no user namespaces and no TIOCSTI there, either"


def test_a_limit_above_ours_is_reported_not_fatal():
    """Without CAP_SYS_RESOURCE a hard limit cannot be raised."""
    with BusyboxContainer() as container:
        wrap = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "prlimit", "--nofile=100:100"]
        from tests.nest.busybox import run

        done = run("attach", str(container.pid), "-v", "--", "sh", "-c", "ulimit -Hn", prefix=wrap)
        assert (done.returncode, done.stdout) == (0, "100\n"), done
        assert "note: resource limit" in done.stderr


# --- cgroups ----------------------------------------------------------------------------------------------------------

CGROUP = pathlib.Path("/sys/fs/cgroup")
HIERARCHIES = [
    path for path in (*CGROUP.glob("*"), CGROUP) if (path / "cgroup.procs").exists() and os.path.ismount(path)
]


@pytest.fixture
def cgroups(leaves_nothing):
    """A cgroup in every mounted hierarchy, removed at the end."""
    if not HIERARCHIES:
        pytest.skip("no cgroup hierarchy is mounted at /sys/fs/cgroup")
    made = []
    for hierarchy in HIERARCHIES:
        path = hierarchy / f"cntr-test-{leaves_nothing}"
        path.mkdir()
        if hierarchy.name == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / file).write_text((hierarchy / file).read_text())
        made.append(path)
    yield [str(path) for path in made]
    import time

    for path in made:
        for _ in range(100):  # busy until the last process is reaped
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def paths_of(text: str) -> dict[str, str]:
    return procfs.cgroups(text)


def test_the_session_is_in_the_containers_cgroups(cgroups):
    with BusyboxContainer(cgroups=cgroups, name="grouped") as container:
        theirs = paths_of(procfs.read(f"/proc/{container.pid}/cgroup"))
        assert sum("cntr-test-" in path for path in theirs.values()) == len(cgroups)
        assert paths_of(container.sh("cat /proc/self/cgroup")) == theirs
        assert paths_of(container.exec("--", "/bin/cat", "/proc/self/cgroup").stdout) == theirs
        own = paths_of(procfs.read("/proc/self/cgroup"))
        own |= {key: path for key, path in theirs.items() if "devices" in key.split(",")}
        assert paths_of(container.sh("cat /proc/self/cgroup", "--no-cgroup")) == own, (
            "the container's device filter still applies"
        )


def test_with_nothing_but_version_2_mounted(cgroups):
    """The hierarchy is found where it is mounted; those of version 1 are then unreachable."""
    v2 = [path for path in cgroups if os.path.exists(f"{path}/cgroup.events")]
    if not v2:
        pytest.skip("the kernel has no cgroup2 hierarchy mounted here")
    from tests.nest.busybox import run

    script = 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || mount -t tmpfs t /sys/fs/cgroup; exec "$@"'
    with BusyboxContainer(cgroups=v2) as container:
        done = run(
            *("attach", str(container.pid), "-v", "--", "cat", "/proc/self/cgroup"),
            prefix=["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"],
        )
        assert done.returncode == 0, done
        assert paths_of(done.stdout)[""] == paths_of(procfs.read(f"/proc/{container.pid}/cgroup"))[""]


@pytest.mark.parametrize("version", [1, 2])
def test_a_frozen_container_is_attached_to_from_outside_its_cgroup(cgroups, version):
    """Joining a frozen cgroup would freeze the session too."""
    file, freeze, thaw = [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")][version - 1]
    found = [path for path in cgroups if os.path.exists(f"{path}/{file}")]
    if not found:
        pytest.skip(f"no freezer of cgroup version {version} here")
    switch = pathlib.Path(found[0], file)
    with BusyboxContainer(cgroups=cgroups) as container:
        switch.write_text(freeze)
        try:
            done = container.attach("--", "sh", "-c", "cat /proc/self/cgroup; cat /proc/1/comm", timeout=20)
            assert done.returncode == 0, done
            assert "is paused: the session stays outside its cgroup" in done.stderr
            assert done.stdout.endswith("app\n")
            joined = {key for key, path in paths_of(done.stdout.rpartition("app\n")[0]).items() if "cntr-test-" in path}
            assert all("devices" in key.split(",") for key in joined), joined
        finally:
            switch.write_text(thaw)


# --- environment ------------------------------------------------------------------------------------------------------


def variables(container: BusyboxContainer, *arguments: str, **options: object) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in container.sh("env", *arguments, **options).splitlines())


def test_the_environment_is_an_allow_list():
    theirs = {
        "PATH": "/opt/app/bin",
        "APP_MODE": "a b=c",
        "DATABASE_URL": "postgres://x/y",
        "LANG": "xx_XX",
        "EMPTY": "",
    }
    with BusyboxContainer(environment=theirs) as container:
        caller = {
            "SHELL": "/bin/bash",
            "PATH": "/usr/bin:/bin",
            "SECRET": "of the caller",
            "LANG": "C.UTF-8",
            "LC_TIME": "C",
        }
        found = variables(container, env=caller)
        assert found["PATH"] == "/usr/bin:/bin"
        assert not {"APP_MODE", "DATABASE_URL", "EMPTY", "SECRET"} & set(found)
        assert (found["LANG"], found["LC_TIME"], found["SHELL"]) == ("C.UTF-8", "C", "/bin/bash"), (
            "the caller's own language"
        )
        assert found["CNTR_TARGET"] == str(container.pid)
        shown = container.sh("cat /run/cntr/environ").splitlines()
        assert {"APP_MODE=a b=c", "DATABASE_URL=postgres://x/y", "EMPTY="} <= set(shown), "visible, but not set"
        found = variables(container, "-e", "NEW=1", "-e", "APP_MODE", "-e", "SECRET", env={"SECRET": "passed on"})
        assert (found["NEW"], found["APP_MODE"], found["SECRET"]) == ("1", "a b=c", "passed on")


def test_nothing_that_a_tool_obeys_comes_from_the_container():
    """Whatever the variable is called, since no list of such names is complete."""
    names = [*STEERING, "TOOL_OF_TOMORROW_PRELOAD", "x", "GDB_RC", "DEBUGINFOD_URLS"]
    with BusyboxContainer(environment=dict.fromkeys(names, "/var/lib/cntr/evil")) as container:
        assert [line for line in container.sh("env").splitlines() if "/var/lib/cntr/evil" in line] == []
        # The container's own command gets them: they are meant for it.
        done = container.exec("--", "/bin/env")
        assert all(f"{name}=/var/lib/cntr/evil" in done.stdout for name in names if "%" not in name)


STEERING = (
    "LD_PRELOAD LD_LIBRARY_PATH PYTHONPATH PYTHONSTARTUP PERL5OPT RUBYOPT NODE_OPTIONS BASH_ENV ENV PROMPT_COMMAND PS4 IFS GCONV_PATH "
    "LOCPATH NLSPATH TERMINFO GIT_SSH_COMMAND LESSOPEN LESS PAGER EDITOR TMPDIR ZDOTDIR VIMINIT OPENSSL_CONF SSL_CERT_FILE TAR_OPTIONS "
    "TEXTDOMAINDIR MAKEFLAGS GIO_EXTRA_MODULES KUBECONFIG RSYNC_RSH BASH_FUNC_ls%% JAVA_TOOL_OPTIONS XDG_CONFIG_HOME CNTR_BASE_DIR"
).split()


@pytest.mark.parametrize("home", ["/dev/shm", "/proc/1/root/tmp", "/var/lib/cntr/tmp", "/tmp", "/usr", "relative", "/"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_the_home_is_the_sessions_own_whatever_the_container_says(home, uid):
    """A shell runs start-up files there, and tools write files there."""
    with BusyboxContainer(
        uid=uid, files={"/etc/passwd": f"app:x:{uid}:{uid}::{home}:/bin/sh\n", "/tmp/x": ""}
    ) as container:
        told = container.sh(
            "echo $HOME; ls -A $HOME; touch $HOME/mine && ls $HOME; rm $HOME/mine; getent passwd $(id -u)"
        )
        where = "/home/app" if uid else "/root"
        assert told.splitlines()[:2] == [where, "mine"]
        assert told.splitlines()[2].split(":")[5] == where


def test_exec_has_the_users_own_home_and_the_directory_of_the_containers_process():
    passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\n"
    with BusyboxContainer(files={"/etc/passwd": passwd}, environment={"HOME": "/root"}) as container:
        script = "echo $(id -u) $HOME"
        assert container.exec("-u", "app", "--", "/bin/sh", "-c", script).stdout == "1000 /srv/app\n"
        assert container.exec("--", "/bin/sh", "-c", script).stdout == "0 /root\n"
        sleeper = ("/bin/sleep", f"60.{container.pid}")
        with subprocess.Popen(
            [sys.executable, "-m", "cntr", "exec", "-w", "/etc", str(container.pid), "--", *sleeper],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
        ) as started:
            try:
                pid = next(iter(wait_until(lambda: running(*sleeper), "it runs")))
                done = run("exec", str(pid), "--", "/bin/sh", "-c", "pwd")
                assert (done.stdout, done.stderr) == ("/etc\n", "")
            finally:
                started.terminate()


def test_nothing_of_the_home_or_the_root_of_this_machine_changes():
    before = {path: sorted(os.listdir(path)) for path in ("/", "/root", "/home")}
    with BusyboxContainer(
        files={"/etc/passwd": "root:x:0:0::/:/bin/sh\n"}, environment={"HOME": "/", "HISTFILESIZE": "0"}
    ) as container:
        script = "echo x > $HOME/.viminfo; mkdir -p ~/.config/x; HISTFILE=~/.bash_history bash -ic 'history -s x; history -w'"
        assert container.attach("--", "sh", "-c", script).returncode == 0
    assert {path: sorted(os.listdir(path)) for path in before} == before
