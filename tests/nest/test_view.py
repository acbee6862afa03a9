"""What a session sees: the tools' tree at /, the container's at the base directory, its kernel filesystems and /etc
files.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

from cntr.linux import syscalls
from tests.nest.busybox import BusyboxContainer, run

BASE = "/var/lib/cntr"


def files_of_the_tools(path: str) -> str:
    return pathlib.Path(path).read_text(errors="replace")


def test_the_tools_are_the_root_and_the_container_is_at_the_base_directory():
    with BusyboxContainer(files={"/etc/motto": "slim\n"}) as container:
        listed = container.sh(f"ls {BASE}; cat {BASE}/etc/motto; cat /etc/os-release; command -v strace")
        assert listed.split("\n")[:6] == ["app", "bin", "dev", "etc", "proc", "sys"]
        assert "\nslim\n" in listed
        assert files_of_the_tools("/etc/os-release") in listed
        assert "/strace" in listed
        assert container.sh("stat -c %d:%i /").strip() == f"{os.stat('/').st_dev}:{os.stat('/').st_ino}"
        assert container.sh("stat -c %U:%G / /usr /etc/hostname | sort -u").split() == ["nobody:nogroup"]


def test_the_base_directory_moves(tmp_path):
    with BusyboxContainer(files={"/etc/motto": "slim\n"}) as container:
        for base in (f"{tmp_path}/not/yet/there", "/srv/c", str(tmp_path)):
            out = container.sh("cat $CNTR_BASE_DIR/etc/motto; echo $CNTR_BASE_DIR", env={"CNTR_BASE_DIR": base})
            assert out == f"slim\n{base}\n"
    assert os.listdir(tmp_path) == [], "the mount point may exist in the nest only"
    assert not os.path.exists("/srv/c")


@pytest.mark.parametrize("base", ["relative", "/", "/a/../b", "/a//b", "/a/"])
def test_an_unclean_base_directory_is_refused(base):
    with BusyboxContainer() as container:
        done = container.attach("--", "true", env={"CNTR_BASE_DIR": base})
        assert done.returncode == 125
        assert "not a clean absolute path" in done.stderr


def test_volumes_and_submounts_come_along(tmp_path):
    (tmp_path / "mark").write_text("from the host\n")

    def mounts(root: str) -> None:
        for path in ("data", "data/deeper", "scratch"):
            os.makedirs(f"{root}/{path}", exist_ok=True)
        syscalls.mount(str(tmp_path), f"{root}/data", None, syscalls.MS_BIND)
        syscalls.mount("tmpfs", f"{root}/data/deeper", "tmpfs", 0)
        syscalls.mount("tmpfs", f"{root}/scratch", "tmpfs", syscalls.MS_RDONLY)
        pathlib.Path(f"{root}/data/deeper/mark").write_text("in a mount on a mount\n")

    (tmp_path / "deeper").mkdir()
    with BusyboxContainer(mounts=mounts) as container:
        out = container.sh(
            f"cd {BASE}; cat data/mark data/deeper/mark; touch data/written; touch scratch/x 2>&1 || true"
        )
        assert out.startswith("from the host\nin a mount on a mount\n")
        assert "Read-only file system" in out
        assert (tmp_path / "written").exists(), "a volume is the volume itself"


def test_proc_dev_and_sys_are_the_containers():
    with BusyboxContainer() as container:
        out = container.sh("cat /proc/1/comm; ls /dev; ls -d /proc/[0-9]* | wc -l; ls /sys/class/net")
        comm, *names = out.split()
        assert comm == "app"
        assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx"} <= set(names)
        assert not {"mem", "kmsg", "vda"} & set(names), "the host's devices stay out"
        assert names[-1] == "lo"
        assert int(names[-2]) <= 6, "only the container's processes"


def test_without_proc_and_sys_fresh_ones_are_mounted():
    """A container may have no /proc (scratch images under bwrap), or only a directory."""
    with BusyboxContainer(mount_proc=False, files={"/sys/fake": "x"}, namespaces=0x2C020000) as container:
        out = container.sh("cat /proc/1/comm; ls /sys; ls /proc/fake 2>&1 || true")
        assert out.startswith("app\n")
        assert "kernel" in out
    with BusyboxContainer(mount_proc=False, files={"/proc/1/comm": "poison\n"}) as container:
        assert container.sh("cat /proc/1/comm") == "app\n", "only a real proc counts as one"


def test_dev_is_the_sessions_own():
    """The container could replace its /dev/null to get a tool's output, or its /dev/fd to run code."""

    class Hostile(BusyboxContainer):
        def _pivot(self) -> None:
            super()._pivot()
            os.unlink("/dev/null")
            os.symlink("/var/lib/cntr/caught", "/dev/null")
            os.mkdir("/dev/fd")

    with Hostile() as container:
        assert container.sh("test -c /dev/null && test -c /dev/zero && echo x >/dev/null && echo yes") == "yes\n"
        assert container.sh("readlink /dev/fd; bash -c 'cat <(echo y) 2>/dev/null'").split() == ["/proc/self/fd", "y"]
        assert not (container.root / "caught").exists()
        assert container.sh(f"readlink {BASE}/dev/null") == "/var/lib/cntr/caught\n", (
            "the container's own /dev is below the base directory"
        )


ETC = {
    "/etc/passwd": "root:x:0:0:slim root:/:/bin/sh\n",
    "/etc/group": "root:x:0:\nslims:x:7:\n",
    "/etc/hosts": "127.0.0.1 slim\n",
    "/etc/hostname": "slim-name\n",
    "/etc/resolv.conf": "nameserver 192.0.2.1\n",
    "/etc/localtime": "TZif-slim",
}


def test_the_etc_files_are_the_containers():
    with BusyboxContainer(files=ETC) as container:
        for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/localtime"):
            assert container.sh(f"cat {path}") == ETC[path]
        assert container.sh("getent passwd 0; getent group 7").split() == ["root:x:0:0::/root:/bin/bash", "slims:x:7:"]
        assert container.sh("cat /etc/shells") == files_of_the_tools("/etc/shells"), "only those files"
        assert "read-only" in container.sh("echo x 2>&1 >/etc/hosts || true").lower()


HOSTILE_NAMES = ("$(id)", "`id`", "a b", "\x1b]0;x\x07", "-rf", "x;y", "../x", "a" * 40, "", "ro\u00f6t", "root")


def test_names_of_the_containers_passwd_are_safe_ones():
    rows = [f"{name}:x:{2000 + n}:{2000 + n}:$(touch /tmp/x):/tmp:/evil\n" for n, name in enumerate(HOSTILE_NAMES)]
    with BusyboxContainer(
        files={"/etc/passwd": "app:x:1000:1000::/tmp:/evil\n" + "".join(rows), "/etc/group": "ev il:x:9:root\n"}
    ) as container:
        lines = [line.split(":") for line in container.sh("cat /etc/passwd").splitlines()]
        known = {line[2]: line for line in lines}
        assert known["1000"][0] == "app"
        assert known["0"][0] == "root"
        for number in range(2000, 2000 + len(HOSTILE_NAMES)):
            assert known[str(number)][0] == f"uid{number}" or HOSTILE_NAMES[number - 2000] == "root"
        assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", line[0]) for line in lines)
        assert "/evil" not in container.sh("cat /etc/passwd")
        assert container.sh("grep :9: /etc/group") == "gid9:x:9:\n"


def test_the_tools_service_users_stay_where_nothing_collides():
    """tcpdump changes to a user that only the tools' passwd has."""
    with BusyboxContainer(files={"/etc/passwd": "root:x:0:0::/:/bin/sh\nsync:x:4711:4711::/:/bin/sh\n"}) as container:
        assert container.sh("id -u sync; id -u mail").split() == ["4711", "8"]


def test_a_container_without_etc_leaves_the_tools_files():
    with BusyboxContainer() as container:
        for name in ("hosts", "resolv.conf"):
            assert container.sh(f"cat /etc/{name}") == files_of_the_tools(f"/etc/{name}")
        assert container.sh("id -un; id -un 1").split() == ["root", "daemon"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling", "out", "absolute_out", "loop", "device", "socket"])
def test_an_odd_etc_file_of_the_container_is_left_out(kind, tmp_path):
    """None may hang the attach, and a symbolic link is resolved only in the container's root."""
    secret = tmp_path / "secret"
    secret.write_text("the host's own\n")

    def make(root: pathlib.Path) -> None:
        path = root / "etc" / "hosts"
        path.parent.mkdir()
        makes = {
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
            "dangling": lambda: path.symlink_to("/nowhere/at/all"),
            "out": lambda: path.symlink_to(f"../../../../../../../..{secret}"),
            "absolute_out": lambda: path.symlink_to(secret),
            "loop": lambda: path.symlink_to("hosts"),
            "device": lambda: os.mknod(path, 0o20666, os.makedev(1, 5)),
            "socket": lambda: os.mknod(path, 0o140666),
        }
        makes[kind]()

    root = tmp_path / "root"
    root.mkdir()
    make(root)
    for name in ("passwd", "group"):  # also read before the fork, for the ids' names
        os.symlink("hosts", root / "etc" / name)
    with BusyboxContainer(root=root) as container:
        out = container.sh("cat /etc/hosts; id -un 1", timeout=10)
        assert out == files_of_the_tools("/etc/hosts") + "daemon\n"


def test_a_symbolic_link_inside_the_container_is_followed_there():
    files = {"/run/resolv.conf": "nameserver 192.0.2.9\n", "/elsewhere/passwd": "linked:x:77:77::/:/bin/sh\n"}
    links = {"/etc/resolv.conf": "/run/resolv.conf", "/etc/passwd": "../../../elsewhere/passwd"}
    with BusyboxContainer(files=files, links=links) as container:
        assert container.sh("cat /etc/resolv.conf") == files["/run/resolv.conf"]
        assert container.sh("id -un 77") == "linked\n"


def test_a_huge_passwd_is_neither_read_whole_nor_copied(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    with open(root / "etc" / "passwd", "wb") as stream:
        stream.write(b"huge:x:77:77::/:/bin/sh\n")
        stream.truncate(10 << 30)
    with BusyboxContainer(root=root) as container:
        assert container.sh("id -un 77; test $(stat -c %s /etc/passwd) -lt 100000 && echo small").split() == [
            "huge",
            "small",
        ]


def tools_tree(root: pathlib.Path) -> pathlib.Path:
    """A small tree of tools: busybox, without any directory that a nest needs."""
    import shutil

    from tests.nest.busybox import APPLETS, BUSYBOX

    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in (*APPLETS, "head", "mkdir"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


def snapshot(root: pathlib.Path) -> list[tuple[str, int, int, int]]:
    """Each path below ROOT with its inode, size and change time."""
    return [
        (str(path), info.st_ino, info.st_size, info.st_ctime_ns)
        for path in [root, *sorted(root.rglob("*"))]
        for info in [path.lstat()]
    ]


def test_a_tools_tree_that_lacks_every_directory(tmp_path):
    """Mount points are only made in the nest; the tools' tree is not changed."""
    tools = tools_tree(tmp_path / "tools")
    before = snapshot(tools)
    with BusyboxContainer(files=ETC) as container:
        out = container.sh(f"cat /proc/1/comm /etc/hosts {BASE}/etc/hostname; ls /", "--tools", str(tools))
        assert out.startswith("app\n127.0.0.1 slim\nslim-name\n")
        assert set(out.split("slim-name\n")[1].split()) >= {"bin", "proc", "sys", "dev", "etc", "var"}
    assert snapshot(tools) == before


def test_a_symbolic_link_at_etc_of_the_tools_is_covered_not_followed(tmp_path):
    """With a resolver daemon /etc/resolv.conf is a link into /run; localtime always is a link."""
    tools = tools_tree(tmp_path / "tools")
    (tools / "etc").mkdir()
    (tools / "run").mkdir()
    (tools / "run" / "stub").write_text("tools\n")
    os.symlink("../run/stub", tools / "etc" / "resolv.conf")
    os.symlink("/nowhere", tools / "etc" / "localtime")
    os.symlink("/proc/self/fd/0", tools / "etc" / "hosts")
    before = snapshot(tools)
    with BusyboxContainer(files=ETC) as container:
        out = container.sh("cat /etc/resolv.conf /etc/localtime /etc/hosts", "--tools", str(tools))
        assert out == ETC["/etc/resolv.conf"] + ETC["/etc/localtime"] + ETC["/etc/hosts"]
    assert snapshot(tools) == before


def test_a_file_where_a_directory_is_needed_and_the_reverse(tmp_path):
    tools = tools_tree(tmp_path / "tools")
    (tools / "etc" / "hosts").mkdir(parents=True)
    (tools / "sys").write_text("a file\n")
    with BusyboxContainer(files=ETC) as container:
        out = container.attach("--tools", str(tools), "--", "/bin/sh", "-c", "cat /etc/hosts; ls /sys")
        assert (out.returncode, out.stderr) == (0, ""), out
        assert out.stdout.startswith("127.0.0.1 slim\n")
        assert "kernel" in out.stdout


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_nothing_of_the_host_can_be_written(tmp_path, transport):
    tmp_path.chmod(0o777)
    words = ["--transport", transport]
    with BusyboxContainer(capabilities=(1 << 41) - 1) as container:
        for path in ("/usr/x", "/var/lib/x", "/etc/x", "/x"):
            assert "Read-only" in container.attach(*words, "--", "touch", path).stderr, path
        script = "mount -o remount,bind,rw /; touch /usr/x /etc/x; echo x >/etc/hostname"
        refused = container.attach(*words, "--", "sh", "-c", script).stderr
        assert "Permission denied" in refused or "Read-only" in refused, (
            "not even with every capability and a writable mount"
        )
        assert not os.path.exists("/usr/x")
        done = container.attach(
            *words, "--", "sh", "-c", f"mkdir -p {tmp_path}; touch {tmp_path}/own /run/own /root/own"
        )
        assert "lost with the session: " in done.stderr
        assert "/root/own" in done.stderr
        assert os.listdir(tmp_path) == []
        assert (
            container.attach("--tools", "host:all", "--force", *words, "--", "touch", f"{tmp_path}/marker").returncode
            == 0
        )
        assert os.listdir(tmp_path) == ["marker"], "with the whole host it is visible, so the check above can fail"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_a_share_is_read_only_or_written_with_its_owners_id(tmp_path, transport):
    shared = tmp_path / "of-alice"
    shared.mkdir(mode=0o700)
    (shared / "letter").write_text("dear\n")
    (shared / "letter").chmod(0o600)
    for path in (shared, shared / "letter"):
        os.chown(path, 4711, 4711)
    (shared / "roots").write_text("root only\n")
    (shared / "roots").chmod(0o600)
    words = ["--transport", transport]
    for uid in (0, 1000):
        with BusyboxContainer(uid=uid) as container:
            out = container.sh(
                f"cat {shared}/letter; touch {shared}/x 2>&1; cat {shared}/roots 2>&1 || true",
                "--share",
                str(shared),
                *words,
            )
            assert "dear" in out
            assert "Read-only" in out
            assert "root only" not in out
            container.sh(f"echo new > {shared}/made-{uid}", "--share", f"{shared}:rw", *words)
            made = (shared / f"made-{uid}").stat()
            assert (made.st_uid, made.st_gid) == (4711, 4711)


@pytest.mark.parametrize("transport", ["mount", "fuse"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_what_is_shared_from_a_directory_of_the_sessions_own_leaves_that_as_it_is(transport, uid):
    """/tmp, /home etc. stay the session's own: writable and of the same size; shared files leave nothing there."""
    with (
        BusyboxContainer(uid=uid) as container,
        tempfile.TemporaryDirectory(dir="/tmp", prefix="cntr-share-") as below_tmp,
        tempfile.TemporaryDirectory(dir="/root", prefix=".cntr-share-") as below_root,
    ):
        names = [f"{below}/deep/er" for below in (below_tmp, below_root)]
        for name in names:
            os.makedirs(name)
            pathlib.Path(name, "mark").write_text("shared\n")
            for directory in (name, os.path.dirname(name), os.path.dirname(os.path.dirname(name))):
                os.chmod(directory, 0o755)
        places = ("/tmp", "/var/tmp", "/run", "/home", "/dev/shm")
        look = "stat -c '%n %a %u' /tmp /home; df --output=size " + " ".join(places) + "; id -u; stat -c '%a %u' ~"
        before = container.sh(look, "--transport", transport)
        shares = [word for name in (*names, f"{below_tmp}/deep/er/mark") for word in ("--share", name)]
        done = container.sh(
            f"cat {names[0]}/mark {names[1]}/mark; {look}; head -c 8M /dev/zero > /tmp/big && rm /tmp/big; touch ~/x && rm ~/x",
            *shares,
            "--transport",
            transport,
        )
        assert done == f"shared\nshared\n{before}"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_what_is_shared_by_a_link_is_found_by_it_and_git_works_there(transport):
    with (
        BusyboxContainer() as container,
        tempfile.TemporaryDirectory(dir="/tmp", prefix="cntr-link-") as below,
        tempfile.TemporaryDirectory(dir="/root", prefix=".cntr-link-") as other,
    ):
        real, link, file = f"{other}/releases/7", f"{below}/site/current", f"{below}/note"
        os.makedirs(real)
        os.makedirs(os.path.dirname(link))
        os.symlink(real, link)
        os.symlink(f"{real}/mark", file)
        pathlib.Path(real, "mark").write_text("shared\n")
        subprocess.run(["git", "init", "-q", real], check=True)
        for mode in ("", ":ro", ":rw"):
            done = container.sh(
                f"cat {link}/mark {file} && git -C {link} status -s && readlink {link}",
                *("--transport", transport, "--share", f"{link}{mode}", "--share", f"{file}{mode}"),
            )
            assert done == f"shared\nshared\n?? mark\n{real}\n", mode
        container.sh(f"echo more >> {link}/mark", "--share", f"{link}:rw", "--transport", transport)
        assert pathlib.Path(real, "mark").read_text() == "shared\nmore\n"


@pytest.mark.parametrize("path", ["/var", "/var/lib", "/var/lib/cntr", "/var/lib/../lib", "/run", "/", "/etc", ""])
def test_what_would_cover_the_session_is_not_shared(path):
    with BusyboxContainer() as container:
        done = container.attach("--share", path, "--share", f"{path}:rw", "--", "true")
        assert done.returncode == 125
        assert done.stderr.startswith("cntr: --share")
        assert container.sh("ls /var/lib/cntr/bin/sh /run/cntr/environ", "--share", "/var/log").count("\n") == 2


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_the_callers_terminal_is_known(tmp_path, transport):
    """Its description may only exist in the caller's home, or not in the tools' tree at all."""
    (tmp_path / "home").mkdir()
    (tmp_path / "source").write_text("my-term|a terminal of one's own,\n\tcols#77, clear=\\E[J,\n")
    subprocess.run(["tic", "-o", tmp_path / "home" / ".terminfo", tmp_path / "source"], check=True)
    words = ["--transport", transport, "--", "tput", "cols"]
    for uid in (0, 1000):
        with BusyboxContainer(uid=uid) as container:
            done = container.attach(*words, env={"TERM": "my-term", "HOME": str(tmp_path / "home"), "COLUMNS": ""})
            assert (done.returncode, done.stdout) == (0, "77\n"), done
            env = {"TERM": "my-term", "HOME": "/nowhere", "TERMINFO": str(tmp_path / "home" / ".terminfo")}
            assert container.attach(*words, env=env).stdout == "77\n"
            for name in ("my-term", "../my-term", "m/my-term", ""):
                assert container.attach(*words, env={"TERM": name, "HOME": "/nowhere", "TERMINFO": ""}).stdout != "77\n"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_a_shell_that_the_session_cannot_run_is_not_its_shell(tmp_path, transport):
    """If it is in a hidden or closed directory, no program or no file, bash or a shell of the tools is used."""
    hidden = tmp_path / "bash"
    shutil.copy("/bin/bash", hidden)
    with BusyboxContainer() as container:
        for shell in (str(hidden), "/etc/passwd", "/etc", "/dev/null", "bash", "/usr/sbin/nologin", "/none"):
            done = container.attach("--transport", transport, input="echo $SHELL $0\n", env={"SHELL": shell})
            assert (done.returncode, done.stdout, done.stderr) == (0, "/bin/bash /bin/bash\n", ""), shell
        done = container.attach("--transport", transport, input="echo $SHELL\n", env={"SHELL": "/usr/bin/dash"})
        assert done.stdout == "/usr/bin/dash\n"
        whole = ["--tools", "host:all", "--transport", transport]
        assert container.attach(*whole, input="echo $SHELL\n", env={"SHELL": str(hidden)}).stdout == f"{hidden}\n"


def test_a_tools_tree_on_a_read_only_filesystem(tmp_path):
    """Mount points are made without writing, so read-only tools work too."""
    tools = tools_tree(tmp_path / "tools")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    with BusyboxContainer(files=ETC) as container:
        done = run(
            *("attach", str(container.pid), "--tools", str(tools), "--", "sh", "-c", f"cat /etc/hosts; ls {BASE}"),
            prefix=["unshare", "-m", "--propagation", "private", "sh", "-c", script, str(tools)],
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith("127.0.0.1 slim\napp\n")


def test_tools_of_another_container():
    with (
        BusyboxContainer(name="slim", files=ETC) as container,
        BusyboxContainer(name="fat", files={"/fat": "tools\n"}) as fat,
    ):
        out = container.sh(f"cat /fat /etc/hostname; ls {BASE}; ls /", "--tools", str(fat.pid))
        assert out.startswith("tools\nslim-name\napp\n")
        assert out.endswith("var\n")
        assert sorted(path.name for path in fat.root.iterdir()) == ["app", "bin", "dev", "fat", "proc", "sys"]


def test_the_view_is_the_containers_own_for_exec():
    with BusyboxContainer(files=ETC) as container:
        done = container.exec("--", "/bin/sh", "-c", "ls /; cat /etc/hostname; echo $PATH; cat /proc/1/comm")
        assert done.stdout == "app\nbin\ndev\netc\nproc\nsys\nslim-name\n/bin\napp\n", done


@pytest.mark.parametrize("transport", ["mount", "fuse"])
@pytest.mark.parametrize("backing", ["plain", "overlay"])
def test_what_only_some_may_read_is_refused_to_everybody(tmp_path, transport, backing):
    """To root with all capabilities, to the owner, to the group; on file systems that can and can't be idmapped."""
    lower = tools_tree(tmp_path / "tools")
    (lower / "open").write_text("for all\n")
    for name, uid, mode in (("roots", 0, 0o600), ("owners", 1000, 0o600), ("groups", 0, 0o640)):
        (lower / name).write_text("secret\n")
        os.chown(lower / name, uid, 1000)
        (lower / name).chmod(mode)
    (lower / "closed").mkdir(mode=0o700)
    (lower / "closed" / "inner").write_text("secret\n")
    os.chown(lower / "closed", 1000, 1000)
    os.mkfifo(lower / "fifo")
    (lower / "fifo").chmod(0o666)
    tools = lower
    if backing == "overlay":
        tools = tmp_path / "merged"
        for name in ("merged", "upper", "work"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={lower},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        syscalls.mount("overlay", str(tools), "overlay", 0, options)
    try:
        for uid in (0, 1000):
            with BusyboxContainer(uid=uid, gid=uid, capabilities=0 if uid else (1 << 41) - 1) as container:
                script = "cat /open; for f in /roots /owners /groups /closed/inner; do cat $f && echo READ; done; ls -A /closed"
                done = container.attach("--tools", str(tools), "--transport", transport, "--", "/bin/sh", "-c", script)
                assert done.stdout == "for all\n", (done.stdout, done.stderr)
                control = container.attach(
                    "--tools", str(lower), "--transport", transport, "--", "/bin/sh", "-c", "ls -A /"
                )
                assert "closed" in control.stdout
    finally:
        if backing == "overlay":
            syscalls.umount(str(tools), syscalls.MNT_DETACH)


def test_a_proc_of_the_pid_namespace_is_made_without_the_option_too(tmp_path):
    """Before Linux 6.17 a process must be in the namespace to mount its /proc."""
    code = (
        "from cntr.linux import syscalls; real = syscalls.new_filesystem\n"
        "def old(kind, options, attrs=0):\n"
        "    if 'pidns' in options: raise OSError(22, 'Invalid argument')\n"
        "    return real(kind, options, attrs)\n"
        "syscalls.new_filesystem = old\n"
        "from cntr.__main__ import main; main()"
    )
    with BusyboxContainer(mount_proc=False) as container:
        done = run("attach", str(container.pid), "--", "cat", "/proc/1/comm", code=code)
        assert (done.stdout, done.stderr) == ("app\n", "")
