"""B8: CntrFS mounts and ``cntr cp``: set-id programs, devices, capabilities and attributes of files that somebody else may write."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import struct
import subprocess
import sys

import pytest

from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY, run

CAPS = struct.pack("<IIIII", 0x02000001, 0x00200000, 0, 0, 0)  # VFS_CAP_REVISION_2, effective; cap_sys_admin
WHO = """
#include <stdio.h>
#include <unistd.h>
#include <linux/capability.h>
#include <sys/syscall.h>
int main(void) {
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];
	syscall(SYS_capget, &h, d);
	printf("euid %d egid %d caps %x\\n", geteuid(), getegid(), d[0].effective);
	return 0;
}
"""


@pytest.fixture(scope="module")
def who(tmp_path_factory) -> str:
    """A static program that prints its ids."""
    kit.need("gcc")
    directory = tmp_path_factory.mktemp("who")
    (directory / "who.c").write_text(WHO)
    subprocess.run(["gcc", "-static", "-o", str(directory / "who"), str(directory / "who.c")], check=True)
    return str(directory / "who")


def arm(directory: pathlib.Path, who: str) -> None:
    """Set-id programs, one with file capabilities, and a device."""
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("plain", 0o755), ("caps", 0o755)):
        shutil.copy(who, directory / name)
        (directory / name).chmod(mode)
    os.setxattr(directory / "caps", "security.capability", CAPS)
    os.mknod(directory / "device", 0o20666, os.makedev(1, 5))
    (directory / "device").chmod(0o666)


def as_user(*words: str, uid: int = 12345) -> str:
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
    done = subprocess.run([*drop, *words], capture_output=True, text=True, check=False, cwd="/")
    return done.stdout + done.stderr


def serve(
    source: pathlib.Path, mountpoint: pathlib.Path, source_flags: str, *flags: str, binding: str = "devfuse"
) -> subprocess.Popen[str]:
    """``cntr mount`` in a mount namespace where SOURCE has SOURCE_FLAGS; a shell waits there for commands on its stdin."""
    script = (
        f"mount -t tmpfs -o {source_flags},mode=755 src {source} && cp -a --no-preserve=context {source}.armed/. {source}/ 2>/dev/null; "
        f"mount -o remount,{source_flags} {source}; {' '.join(CNTR)} mount --binding {binding} {' '.join(flags)} {source} {mountpoint} && "
        f'while read -r line; do sh -c "$line" 2>&1; echo END; done; umount -l {mountpoint}'
    )
    return subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def told(process: subprocess.Popen[str], command: str) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    lines = []
    while (line := process.stdout.readline()) not in ("END\n", ""):
        lines.append(line)
    return "".join(lines)


USER = "setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=-all "


@pytest.mark.parametrize("flags", ["nosuid", "nosuid,nodev", "noexec", "nodev", "nosuid,nodev,noexec"])
def test_a_mount_of_a_restricted_source(who, place, flags):
    """nosuid, nodev, noexec of the source hold through CntrFS, without being asked for."""
    source, mountpoint = place / "source", place / "mountpoint"
    for directory in (source, mountpoint, place / "source.armed"):
        directory.mkdir()
        directory.chmod(0o755)
    arm(place / "source.armed", who)
    process = serve(source, mountpoint, flags)
    try:
        assert "euid" in told(process, f"{USER}{who}") or "noexec" in flags
        shown = {name: told(process, f"{USER}{mountpoint}/{name}") for name in ("plain", "setuid", "setgid", "caps")}
        device = told(process, f"{USER}head -c1 {mountpoint}/device | od -An -tx1")
        if "noexec" in flags:
            assert not any("euid" in text for text in shown.values()), shown
        else:
            assert "euid 12345" in shown["plain"]
        if "nosuid" in flags:
            assert "euid 0" not in shown["setuid"]
            assert "egid 0" not in shown["setgid"]
            assert "caps 200000" not in shown["caps"]
        if "nodev" in flags:
            assert " 00" not in device
    finally:
        process.stdin.close()
        process.wait(15)
        process.stdout.close()


def test_a_submount_keeps_its_own_flags(who, place):
    """nosuid of a mount below the source, where the source itself has none."""
    source, mountpoint = place / "source", place / "mountpoint"
    for directory in (source, mountpoint, place / "source.armed"):
        directory.mkdir()
    (place / "source.armed" / "sub").mkdir()
    arm(place / "source.armed", who)
    process = serve(source, mountpoint, "dev")
    try:
        told(
            process,
            f"mount -t tmpfs -o nosuid,nodev,mode=755 sub {source}/sub; cp -a {source}.armed/setuid {source}.armed/caps {source}.armed/device {source}/sub/",
        )
        assert "euid 0" in told(process, f"{USER}{source}/setuid"), "control: the program works"
        assert "euid 0" not in told(process, f"{USER}{mountpoint}/sub/setuid")
        assert "caps 200000" not in told(process, f"{USER}{mountpoint}/sub/caps")
        assert " 00" not in told(process, f"{USER}head -c1 {mountpoint}/sub/device | od -An -tx1")
    finally:
        process.stdin.close()
        process.wait(15)
        process.stdout.close()


@pytest.mark.parametrize("uid", [0, 1000])
def test_set_id_programs_of_the_container_are_dead_in_a_session(who, accomplice, canary, place, transport, uid):
    """In a session the container's set-id programs, file capabilities and devices have no effect."""
    with kit.hostile(place, accomplice, uid=uid) as container:
        (container.root / "armed").mkdir()
        arm(container.root / "armed", who)
        drop = "" if uid else "setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps=-all "
        script = f"for p in setuid setgid caps; do {drop}/var/lib/cntr/armed/$p 2>&1; done; echo over"
        shown = kit.in_session(container, transport, script, *(["--user", "12345:12345"] if uid else []))
        assert "over" in shown
        assert "euid 0" not in shown
        assert "egid 0" not in shown
        assert "caps 200000" not in shown


@pytest.mark.parametrize("program", ["su", "mount", "passwd", "newgrp", "chsh", "gpasswd"])
def test_set_id_programs_of_the_tools_are_dead_in_a_session(accomplice, canary, place, transport, program):
    kit.need(program)
    with kit.hostile(place, accomplice) as container:
        code = "import os,sys; print('nosuid', os.statvfs(sys.argv[1]).f_flag & 2)"
        line = f'python3 -c "{code}" $(readlink -f $(command -v {program}))'
        shown = kit.in_session(container, transport, line, "--user", "4711")
        assert shown == "nosuid 2\n"


# --- cp ---------------------------------------------------------------------------------------------------------------


def test_archive_out_of_a_user_namespace_makes_no_root_file(who, accomplice, canary, place):
    """The container's root is uid 100000 here; a set-id root program of its own must not become root's on the host."""
    out = place / "out"
    out.mkdir()
    with kit.remapped(place, accomplice) as container:
        (container.root / "armed").mkdir()
        arm(container.root / "armed", who)
        for path in (container.root / "armed", *(container.root / "armed").iterdir()):
            os.chown(path, kit.FIRST_ID, kit.FIRST_ID)
        (container.root / "armed" / "setuid").chmod(0o4755)
        (container.root / "armed" / "setgid").chmod(0o2755)
        run("cp", "-a", f"{container.pid}:/armed", str(out))
        found = list(out.rglob("*"))
        assert found
        for path in found:
            status = path.lstat()
            assert not (status.st_uid == 0 and status.st_mode & stat.S_ISUID), path
            assert not (status.st_gid == 0 and status.st_mode & stat.S_ISGID and path.is_file()), path
            assert not stat.S_ISCHR(status.st_mode), path
            if path.name == "setuid":
                assert "euid 0" not in as_user(str(path))


@pytest.mark.parametrize("flags", [(), ("-a",)])
def test_copies_out_of_a_container_hold_no_rights(who, accomplice, canary, place, flags):
    """Without --archive no set-id bit and no capability comes along; with it none that the container may not give."""
    out = place / "out"
    out.mkdir()
    with kit.hostile(place, accomplice) as container:
        (container.root / "armed").mkdir()
        arm(container.root / "armed", who)
        for name in ("trusted.overlay.opaque", "trusted.evil"):
            os.setxattr(container.root / "armed" / "plain", name, b"y")
        run("cp", *flags, f"{container.pid}:/armed", str(out))
        for path in out.rglob("*"):
            names = os.listxattr(path, follow_symlinks=False)
            assert not [name for name in names if name.startswith("trusted.")]
            if not flags:
                assert not path.lstat().st_mode & 0o6000
                assert "security.capability" not in names
            assert not stat.S_ISCHR(path.lstat().st_mode)


SOURCES = {
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)),
    "block": lambda path: os.mknod(path, 0o60666, os.makedev(254, 0)),
    "absolute link": lambda path: path.symlink_to("/etc/shadow"),
    "relative link": lambda path: path.symlink_to("../../../../../../../../etc/shadow"),
    "proc link": lambda path: path.symlink_to("/proc/self/root/etc/shadow"),
    "fd link": lambda path: path.symlink_to("/proc/self/fd/3"),
    "self link": lambda path: path.symlink_to("/proc/self/environ"),
    "loop": lambda path: path.symlink_to(path.name),
    "dotdot": lambda path: (path.mkdir(), (path / "..x").touch()),
}


@pytest.mark.parametrize("flags", [(), ("-L",), ("-a",)])
@pytest.mark.parametrize("kind", SOURCES)
def test_sources_of_every_kind(accomplice, canary, place, kind, flags):
    """What comes out is the container's, whatever the name leads to, and where it lands is where it was asked to."""
    shadow = pathlib.Path("/etc/shadow").read_bytes()
    out = place / "out"
    out.mkdir()
    with kit.hostile(place, accomplice) as container:
        SOURCES[kind](container.root / "source")
        done = run("cp", *flags, f"{container.pid}:/source", str(out / "got"), timeout=30)
        assert "Traceback" not in done.stderr
        for path in out.rglob("*"):
            assert not stat.S_ISCHR(path.lstat().st_mode)
            assert not stat.S_ISBLK(path.lstat().st_mode)
            if path.is_file() and not path.is_symlink():
                assert path.read_bytes() != shadow or not shadow
                assert b"PYTHONPATH=" not in path.read_bytes()
    assert sorted(os.listdir(place)) == ["out", "root"]


@pytest.mark.parametrize("destination", ["/etc", "/link", "/link/x", "/dir/../link"])
def test_copies_into_a_container_stay_in_it(accomplice, canary, place, destination):
    """The destination is a link to a path of the host."""
    (place / "file").write_text("from the host\n")
    with kit.hostile(place, accomplice) as container:
        (container.root / "dir").mkdir()
        for name, target in (("link", str(canary.directory)), ("up", "../../../../../../.." + str(canary.directory))):
            (container.root / name).symlink_to(target)
        done = run("cp", str(place / "file"), f"{container.pid}:{destination}/")
        run("cp", str(place / "file"), f"{container.pid}:/up/")
        run("cp", str(place / "file"), f"{container.pid}:/proc/self/root/../../../{canary.directory}/")
        assert "Traceback" not in done.stderr
        canary.untouched()
        assert sys.executable
