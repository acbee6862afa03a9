"""What a session sees: the tools' tree at /, the container's at the base directory, its kernel filesystems and its /etc files."""

from __future__ import annotations

import os
import pathlib

import pytest

from cntr.linux import syscalls
from tests.nest.box import Box, run

BASE = "/var/lib/cntr"


def files_of_the_tools(path: str) -> str:
    return pathlib.Path(path).read_text(errors="replace")


def test_the_tools_are_the_root_and_the_container_is_at_the_base_directory():
    with Box(files={"/etc/motto": "slim\n"}) as box:
        listed = box.sh(f"ls {BASE}; cat {BASE}/etc/motto; cat /etc/os-release; command -v strace")
        assert listed.split("\n")[:6] == ["app", "bin", "dev", "etc", "proc", "sys"]
        assert "\nslim\n" in listed
        assert files_of_the_tools("/etc/os-release") in listed
        assert "/strace" in listed
        assert box.sh("stat -c %d:%i /").strip() == f"{os.stat('/').st_dev}:{os.stat('/').st_ino}"


def test_the_base_directory_moves(tmp_path):
    with Box(files={"/etc/motto": "slim\n"}) as box:
        for base in (f"{tmp_path}/not/yet/there", "/srv/c", str(tmp_path)):
            out = box.sh("cat $CNTR_BASE_DIR/etc/motto; echo $CNTR_BASE_DIR", env={"CNTR_BASE_DIR": base})
            assert out == f"slim\n{base}\n"
    assert os.listdir(tmp_path) == [], "the mount point was made in the nest only"
    assert not os.path.exists("/srv/c")


@pytest.mark.parametrize("base", ["relative", "/", "/a/../b", "/a//b", "/a/"])
def test_an_unclean_base_directory_is_refused(base):
    with Box() as box:
        done = box.attach("--", "true", env={"CNTR_BASE_DIR": base})
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
    with Box(mounts=mounts) as box:
        out = box.sh(f"cd {BASE}; cat data/mark data/deeper/mark; touch data/written; touch scratch/x 2>&1 || true")
        assert out.startswith("from the host\nin a mount on a mount\n")
        assert "Read-only file system" in out
        assert (tmp_path / "written").exists(), "a volume is the volume itself"


def test_proc_dev_and_sys_are_the_containers():
    with Box() as box:
        out = box.sh("cat /proc/1/comm; ls /dev; ls -d /proc/[0-9]* | wc -l; ls /sys/class/net")
        comm, *names = out.split()
        assert comm == "app"
        assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx"} <= set(names)
        assert not {"mem", "kmsg", "vda"} & set(names), "the host's devices stay out"
        assert names[-1] == "lo"
        assert int(names[-2]) <= 6, "only the container's processes"


def test_without_proc_and_sys_fresh_ones_are_mounted():
    """A container may have no /proc (scratch images under bwrap), or a plain directory there."""
    with Box(mount_proc=False, files={"/sys/fake": "x"}, namespaces=0x2C020000) as box:
        out = box.sh("cat /proc/1/comm; ls /sys; ls /proc/fake 2>&1 || true")
        assert out.startswith("app\n")
        assert "kernel" in out
    with Box(mount_proc=False, files={"/proc/1/comm": "poison\n"}) as box:
        assert box.sh("cat /proc/1/comm") == "app\n", "only a real proc is taken for one"


def test_without_a_usable_dev_the_tools_own_stays():
    def mounts(root: str) -> None:
        os.rmdir(f"{root}/dev")

    class WithoutDev(Box):
        def _pivot(self) -> None:
            super()._pivot()
            syscalls.umount("/dev", syscalls.MNT_DETACH)

    with WithoutDev() as box:
        assert box.sh("test -c /dev/null && test -c /dev/zero && echo x >/dev/null && echo yes") == "yes\n"


ETC = {
    "/etc/passwd": "root:x:0:0:slim root:/:/bin/sh\n",
    "/etc/group": "root:x:0:\nslims:x:7:\n",
    "/etc/hosts": "127.0.0.1 slim\n",
    "/etc/hostname": "slim-name\n",
    "/etc/resolv.conf": "nameserver 192.0.2.1\n",
    "/etc/localtime": "TZif-slim",
}


def test_the_etc_files_are_the_containers():
    with Box(files=ETC) as box:
        for path, text in ETC.items():
            assert box.sh(f"cat {path}") == text
        assert box.sh("cat /etc/shells") == files_of_the_tools("/etc/shells"), "only those files"


def test_a_container_without_etc_leaves_the_tools_files():
    with Box() as box:
        for name in ("passwd", "group", "hosts", "resolv.conf"):
            assert box.sh(f"cat /etc/{name}") == files_of_the_tools(f"/etc/{name}")


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling", "out", "absolute_out", "loop", "device", "socket"])
def test_an_odd_etc_file_of_the_container_is_left_out(kind, tmp_path):
    """None of them may hang the attach, and a symbolic link is resolved in the container's root only."""
    secret = tmp_path / "secret"
    secret.write_text("the host's own\n")

    def make(root: pathlib.Path) -> None:
        path = root / "etc" / "hosts"
        path.parent.mkdir()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "dangling":
                path.symlink_to("/nowhere/at/all")
            case "out":
                path.symlink_to(f"../../../../../../../..{secret}")
            case "absolute_out":
                path.symlink_to(secret)
            case "loop":
                path.symlink_to("hosts")
            case "device":
                os.mknod(path, 0o20666, os.makedev(1, 5))
            case "socket":
                os.mknod(path, 0o140666)

    root = tmp_path / "root"
    root.mkdir()
    make(root)
    for name in ("passwd", "group"):  # read before the fork too, for the ids' names
        os.symlink("hosts", root / "etc" / name)
    with Box(root=root) as box:
        out = box.sh("cat /etc/hosts; cat /etc/passwd", timeout=10)
        assert out == files_of_the_tools("/etc/hosts") + files_of_the_tools("/etc/passwd")


def test_a_symbolic_link_inside_the_container_is_followed_there():
    files = {"/run/resolv.conf": "nameserver 192.0.2.9\n", "/elsewhere/passwd": "root:x:0:0:linked:/:/bin/sh\n"}
    links = {"/etc/resolv.conf": "/run/resolv.conf", "/etc/passwd": "../../../elsewhere/passwd"}
    with Box(files=files, links=links) as box:
        assert box.sh("cat /etc/resolv.conf /etc/passwd") == "".join(files.values())


def test_a_huge_passwd_is_neither_read_whole_nor_copied(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    with open(root / "etc" / "passwd", "wb") as stream:
        stream.write(b"root:x:0:0:huge:/:/bin/sh\n")
        stream.truncate(10 << 30)
    with Box(root=root) as box:
        assert box.sh("stat -c %s /etc/passwd; head -c 16 /etc/passwd") == f"{10 << 30}\nroot:x:0:0:huge:"


def tools_tree(root: pathlib.Path) -> pathlib.Path:
    """A small tree of tools: busybox, and no directory that a nest needs."""
    import shutil

    from tests.nest.box import APPLETS, BUSYBOX

    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in (*APPLETS, "head", "mkdir"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


def snapshot(root: pathlib.Path) -> list[tuple[str, int, int, int]]:
    """Every name below ROOT with its inode, size and change time."""
    return [
        (str(path), info.st_ino, info.st_size, info.st_ctime_ns)
        for path in [root, *sorted(root.rglob("*"))]
        for info in [path.lstat()]
    ]


def test_a_tools_tree_that_lacks_every_directory(tmp_path):
    """Mount points are made to exist in the nest; the tools' tree itself stays untouched."""
    tools = tools_tree(tmp_path / "tools")
    before = snapshot(tools)
    with Box(files=ETC) as box:
        out = box.sh(f"cat /proc/1/comm /etc/hosts {BASE}/etc/hostname; ls /", "--tools", str(tools))
        assert out.startswith("app\n127.0.0.1 slim\nslim-name\n")
        assert set(out.split("slim-name\n")[1].split()) >= {"bin", "proc", "sys", "dev", "etc", "var"}
    assert snapshot(tools) == before


def test_a_symbolic_link_at_etc_of_the_tools_is_covered_not_followed(tmp_path):
    """On hosts with a resolver daemon /etc/resolv.conf is a link into /run; localtime is one everywhere."""
    tools = tools_tree(tmp_path / "tools")
    (tools / "etc").mkdir()
    (tools / "run").mkdir()
    (tools / "run" / "stub").write_text("tools\n")
    os.symlink("../run/stub", tools / "etc" / "resolv.conf")
    os.symlink("/nowhere", tools / "etc" / "localtime")
    os.symlink("/proc/self/fd/0", tools / "etc" / "hosts")
    before = snapshot(tools)
    with Box(files=ETC) as box:
        out = box.sh("cat /etc/resolv.conf /etc/localtime /etc/hosts /run/stub", "--tools", str(tools))
        assert out == ETC["/etc/resolv.conf"] + ETC["/etc/localtime"] + ETC["/etc/hosts"] + "tools\n"
    assert snapshot(tools) == before


def test_a_file_where_a_directory_is_needed_and_the_reverse(tmp_path):
    tools = tools_tree(tmp_path / "tools")
    (tools / "etc" / "hosts").mkdir(parents=True)
    (tools / "sys").write_text("a file\n")
    with Box(files=ETC) as box:
        out = box.attach("--tools", str(tools), "--", "/bin/sh", "-c", "cat /etc/hosts; ls /sys")
        assert (out.returncode, out.stderr) == (0, ""), out
        assert out.stdout.startswith("127.0.0.1 slim\n")
        assert "kernel" in out.stdout


def test_read_only_covers_the_whole_tools_tree(tmp_path):
    def refused(path: str, *arguments: str) -> bool:
        out = box.sh(f"touch {path} 2>&1 || true", *arguments)
        return "Read-only file system" in out

    marker = tmp_path / "marker"
    with Box() as box:
        for path in ("/root/x", "/usr/x", "/var/lib/x", str(marker), "/run/x"):
            assert refused(path, "--read-only"), path
        assert not refused(f"{BASE}/written", "--read-only"), "the container's own tree stays as it is"
        assert (box.root / "written").exists()
        out = box.sh("mount -o remount,rw / 2>&1 || true; touch /usr/x 2>&1 || true", "--read-only")
        assert "Read-only" in out, "and cannot be undone without CAP_SYS_ADMIN"
        box.sh(f"touch {marker}")
        assert marker.exists(), "without the option it is writable: the check above can fail"


def test_a_tools_tree_on_a_read_only_filesystem(tmp_path):
    """Nothing is written to make mount points, so read-only tools do as well."""
    tools = tools_tree(tmp_path / "tools")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    with Box(files=ETC) as box:
        done = run(
            *("attach", str(box.pid), "--tools", str(tools), "--", "sh", "-c", f"cat /etc/hosts; ls {BASE}"),
            prefix=["unshare", "-m", "--propagation", "private", "sh", "-c", script, str(tools)],
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith("127.0.0.1 slim\napp\n")


def test_tools_of_another_container():
    with Box(name="slim", files=ETC) as box, Box(name="fat", files={"/fat": "tools\n"}) as fat:
        out = box.sh(f"cat /fat /etc/hostname; ls {BASE}; ls /", "--tools", str(fat.pid))
        assert out.startswith("tools\nslim-name\napp\n")
        assert out.endswith("var\n")
        assert sorted(path.name for path in fat.root.iterdir()) == ["app", "bin", "dev", "fat", "proc", "sys"]


def test_the_view_is_the_containers_own_for_exec():
    with Box(files=ETC) as box:
        done = box.exec("--", "/bin/sh", "-c", "ls /; cat /etc/hostname; echo $PATH; cat /proc/1/comm")
        assert done.stdout == "app\nbin\ndev\netc\nproc\nsys\nslim-name\n/bin\napp\n", done
