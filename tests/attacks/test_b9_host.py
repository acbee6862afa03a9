"""B9 and the heart of it: what of the host a session reads, writes or talks to. By every path that leads out of the view, on both transports.

On file systems of several kinds, in several places, for uid 0 with the container's capabilities and for others.
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from tests.attacks import kit
from tests.nest.busybox import REPOSITORY, one_line_and_hint, run

PLACES = ("/opt", "/etc", "/usr/local/lib", "/var/lib", "/srv", "/usr/share", "/var/cache", "/boot", "/mnt", "/media")
READS = {
    "cat": "cat {path}",
    "dots": "cat /proc/../../../..{path} /var/lib/cntr/../../..{path}",
    "proc root": "cat /proc/self/root{path} /proc/1/root{path} /proc/$PPID/root{path}",
    "proc cwd": "cd /; cat /proc/self/cwd{path} /proc/$PPID/cwd{path}",
    "fds": "for p in /proc/[0-9]*; do for f in $p/fd/*; do cat $f/../../../../..{path} 2>/dev/null; done; done",
    "copy": "cp {path} /tmp/copy; cat /tmp/copy",
    "link": "ln {path} /tmp/hard; cat /tmp/hard; ln -s {path} /tmp/soft; cat /tmp/soft",
    "chmod": "chmod 777 {path}; chown 0 {path}; setfacl -m u:0:rwx {path}; cat {path}",
    "tar": "tar cf - {path} | tar xOf -",
    "bind": "unshare -m sh -c 'mount --bind {path} /mnt; cat /mnt'; mount --bind / /mnt; cat /mnt{path}",
    "remount": "mount -o remount,rw,suid,dev /; mount -o remount,bind,rw /; cat {path}",
    "user namespace": "unshare -Ur cat {path}; unshare -Urm sh -c 'mount --bind / /mnt; cat /mnt{path}'; unshare -U --map-users=0,0,1 cat {path}",
    "other users": "for u in 0 1 2 4 42 999 1000 1001 65533 65534 65535 2147483647 4294967294; do setpriv --reuid $u --regid $u --clear-groups cat {path}; "
    "setpriv --reuid $u --groups 0,1,4,6,42,999,1000,65534 --regid 42 cat {path}; done",
    "capabilities": "capsh --user=nobody -- -c 'cat {path}'; capsh --inh=all --addamb=all -- -c 'cat {path}'",
    "python": "python3 -c \"print(open('{path}').read())\"; python3 -c \"import os; print(os.read(os.open('{path}', os.O_RDONLY|os.O_NOATIME),99))\"",
    "path fd": "python3 -c \"import os; f=os.open('{path}', os.O_PATH); print(open(f'/proc/self/fd/{{f}}').read())\"",
    "handle": "python3 -c \"import ctypes,os;l=ctypes.CDLL(None);h=ctypes.create_string_buffer(136);h[0:4]=(128).to_bytes(4,'little');m=ctypes.c_int();"
    "l.name_to_handle_at(-100,b'{path}',h,ctypes.byref(m),0);r=os.open('/opt',0);f=l.open_by_handle_at(r,h,0);print(os.read(f,99))\"",
    "root handle": "python3 -c \"import ctypes,os;l=ctypes.CDLL(None);b=(8).to_bytes(4,'little')+(1).to_bytes(4,'little')+(2).to_bytes(4,'little')+(0).to_bytes(4,'little');"
    "r=os.open('/usr',0);f=l.open_by_handle_at(r,b,0x10000);print(os.read(os.open('{path}'.lstrip('/'),0,dir_fd=f),99))\"",
    "debugfs": "debugfs -R 'cat {path}' /dev/vda; debugfs -R 'cat {path}' /dev/root; mknod /tmp/disk b 254 0; debugfs -R 'cat {path}' /tmp/disk; head -c 99 /tmp/disk | strings",
    "kernel memory": "head -c1 /dev/mem /dev/kmem /proc/kcore; cat /dev/vda | head -c 1",
    "open_tree": "python3 -c \"import ctypes,os;l=ctypes.CDLL(None);t=l.syscall(428,-100,b'/',0x8001);print(os.read(os.open('{path}'.lstrip('/'),0,dir_fd=t),99))\"",
    "core pattern": "cat /proc/sys/kernel/core_pattern; echo '|/bin/cat {path}' >/proc/sys/kernel/core_pattern_",
    "git": "git diff --no-index /dev/null {path}; git hash-object {path}; git config -f {path} -l",
    "su": "su -c 'cat {path}' </dev/null; su nobody -s /bin/sh -c 'cat {path}' </dev/null; sg shadow 'cat {path}' </dev/null",
    "setgid program": "chage -l root; ssh-agent cat {path}; write; expiry -c; unix_chkpwd root nullok </dev/null",
}


@pytest.mark.parametrize("way", READS)
def test_a_file_of_roots_is_not_read(accomplice, canary, place, way):
    with kit.hostile(place, accomplice) as container:
        for path in (canary.path, canary.file("group"), canary.file("user")):
            done = kit.attach(
                container,
                "mount",
                command=["/bin/bash", "-c", f"({READS[way].format(path=path)}) </dev/null"],
                timeout=30,
            )
            assert canary.secret not in done.stdout + done.stderr, path
            if way in ("kernel memory", "debugfs", "setgid program"):
                break


def test_a_file_of_roots_is_not_read_by_fuse(accomplice, canary, place):
    with kit.hostile(place, accomplice) as container:
        for path in (canary.path, canary.file("group")):
            lines = "\n".join(
                f"({line.format(path=path)}) </dev/null"
                for way, line in READS.items()
                if way not in ("fds", "other users", "setgid program")
            )
            done = kit.attach(container, "fuse", command=["/bin/bash", "-c", lines], timeout=60)
            assert canary.secret not in done.stdout + done.stderr, path


@pytest.mark.parametrize(("transport", "where"), kit.each(PLACES, 3), indirect=["transport"])
def test_wherever_it_lies(accomplice, place, transport, where):
    if not os.path.isdir(where):
        pytest.skip(f"no {where} here")
    with kit.canary(accomplice, where) as canary, kit.hostile(place, accomplice) as container:
        paths = " ".join([canary.path, canary.file("group"), canary.file("user")])
        done = kit.attach(
            container,
            transport,
            command=[
                "/bin/bash",
                "-c",
                f"cat {paths}; echo x >>{canary.file('public')}; touch {canary.file('open')}/new",
            ],
        )
        assert f"{canary.secret} root" not in done.stdout
        assert f"{canary.secret} group" not in done.stdout
        assert f"{canary.secret} user" not in done.stdout
        canary.untouched()


@pytest.mark.parametrize(
    ("transport", "user"),
    kit.each(["", "0", "1000", "1000:42", "0:0", "42", "65534", "65534:65534", "4294967294"], 4),
    indirect=["transport"],
)
def test_for_whichever_user(accomplice, canary, place, transport, user):
    """uid 1000 of the container is not uid 1000 of the host; neither is 65534, nor an id that no file has."""
    with kit.hostile(place, accomplice, groups=(42, 1000)) as container:
        flags = ["--user", user] if user else []
        done = kit.attach(
            container,
            transport,
            *flags,
            command=[
                "/bin/bash",
                "-c",
                f"cat {canary.path} {canary.file('group')} {canary.file('user')}; cat /etc/shadow",
            ],
        )
        assert canary.secret not in done.stdout, done
        assert "root:" not in done.stdout
        canary.untouched()


def test_privileged_is_no_way_to_the_hosts_files(accomplice, canary, place, transport):
    """--privileged alone keeps capabilities, it does not bring the tree."""
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(
            container,
            transport,
            "--privileged",
            command=["/bin/bash", "-c", f"cat {canary.path}; echo x >>{canary.file('public')}"],
        )
        assert canary.secret not in done.stdout, done


WRITES = (
    "echo x >>{public}; echo x >{public}; touch {open}/new; mkdir {directory}/made; rm -rf {directory}/canary*; mv {public} {public}2; ln {public} {open}/l; "
    "chmod 777 {public}; chown 1000 {public}; setfattr -n user.x -v y {public}; truncate -s 0 {public}; touch -d 2000-01-01 {public}; "
    "python3 -c \"import os; os.link('{public}', '{open}/l2')\"; "
    "python3 -c \"import os; f=os.open('{public}', os.O_PATH); os.open(f'/proc/self/fd/{{f}}', os.O_WRONLY|os.O_TRUNC)\"; "
    "python3 -c \"import os; f=os.open('{open}', os.O_TMPFILE|os.O_RDWR); os.write(f,b'x')\"; "
    "cp /bin/true {open}/; sed -i s/a/b/ {public}; dd if=/dev/zero of={public} count=1; tar xf /dev/null -C {open}; "
)


@pytest.mark.parametrize("user", ["0", "1000", "42"])
def test_nothing_is_written_to_the_host(accomplice, canary, place, transport, user):
    words = {"public": canary.file("public"), "open": canary.file("open"), "directory": str(canary.directory)}
    before = os.stat(canary.file("public"))
    with kit.hostile(place, accomplice) as container:
        kit.attach(
            container,
            transport,
            "--user",
            user,
            command=["/bin/bash", "-c", f"({WRITES.format(**words)}) 2>&1"],
            timeout=30,
        )
    canary.untouched()
    after = os.stat(canary.file("public"))
    assert (before.st_mode, before.st_uid, before.st_mtime_ns, before.st_nlink) == (
        after.st_mode,
        after.st_uid,
        after.st_mtime_ns,
        after.st_nlink,
    )


def test_every_mount_of_a_session_is_the_containers_or_cannot_be_written(accomplice, canary, place, transport):
    """A file made wherever it can be made is not on the host afterwards: /tmp, /var/tmp, /run, /dev/shm, /home, /root and all the mounts."""
    name = f"cntr-attack-{canary.secret}"
    with kit.hostile(place, accomplice) as container:
        script = (
            f"for d in / $(cut -d' ' -f5 /proc/self/mountinfo) /tmp /var/tmp /run /run/lock /dev/shm /root /home /var /var/log /var/spool/cron /etc/cron.d "
            f"/usr/local/bin /var/lib /dev /mnt /srv /opt /run/user /var/cache /dev/mqueue /sys/fs/cgroup; do touch $d/{name} 2>/dev/null; done; echo over"
        )
        assert kit.in_session(container, transport, script).startswith("over\n")
    found = subprocess.run(["find", "/", "-xdev", "-name", name], capture_output=True, text=True, check=False).stdout
    for top in ("/dev/shm", "/dev", "/run", "/sys/fs/cgroup", "/dev/mqueue"):
        found += subprocess.run(
            ["find", top, "-maxdepth", "1", "-xdev", "-name", name], capture_output=True, text=True, check=False
        ).stdout
    # The container's own tree is its own.
    left = [path for path in found.splitlines() if not path.startswith(f"{container.root}/")]
    assert left == []


FILESYSTEMS = {
    "tmpfs": "mount -t tmpfs -o mode=755 x {where}",
    "ext4": "truncate -s 8M {image}; mkfs.ext4 -q {image}; mount -o loop {image} {where}",
    "xfs": "truncate -s 320M {image}; mkfs.xfs -q {image}; mount -o loop {image} {where}",
    "btrfs": "truncate -s 120M {image}; mkfs.btrfs -q {image}; mount -o loop {image} {where}",
    "squashfs": "mksquashfs {lower} {image} -quiet -no-progress >/dev/null; mount -o loop {image} {where}",
    "vfat": "truncate -s 8M {image}; mkfs.vfat {image} >/dev/null; mount -o loop,umask=077 {image} {where}",
    "overlay": "mount -t tmpfs x {lower}; mkdir {lower}/u {lower}/w {lower}/l; mount -t overlay -o lowerdir={lower}/l,upperdir={lower}/u,workdir={lower}/w o {where}",
    "bind": "mount --bind {lower} {where}",
    "ramfs": "mount -t ramfs x {where}; chmod 755 {where}",
    "read-only": "mount -t tmpfs -o mode=755 x {where}",
    "fuse": "{cntr} mount {lower} {where}",
}


@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_on_every_filesystem_of_the_tools(accomplice, canary, place, transport, kind):
    """On one that takes no idmapped mount an overlay shows what all may read, or what only root may is masked; none is writable."""
    where, lower, image = canary.directory / "canary.open", place / "lower", place / "image"
    lower.mkdir()
    lower.chmod(0o755)
    mount = FILESYSTEMS[kind].format(where=where, lower=lower, image=image, cntr=f"{sys.executable} -m cntr")
    fill = (
        f"mkdir -p -m 700 {where}/closed {where}/deep/er; mkdir -m 755 {where}/pub; for f in secret closed/secret deep/er/secret; do echo {canary.secret} >{where}/$f; chmod 600 {where}/$f; done; "
        f"echo {canary.secret} >{where}/pub/group; chgrp 42 {where}/pub/group; chmod 640 {where}/pub/group; echo {canary.secret} >{where}/pub/user; chown 1000 {where}/pub/user; chmod 600 {where}/pub/user; "
        f"mkdir -m 1777 {where}/all; echo public >{where}/pub/file; chmod 666 {where}/pub/file"
    )
    if kind == "squashfs":
        fill, mount = f"{fill.replace(str(where), str(lower))}; {mount}", "true"
    if kind == "read-only":
        fill += f"; mount -o remount,ro {where}"
    line = f'({mount}) >/dev/null 2>&1 && mountpoint -q {where} || {"true" if kind == "squashfs" else "exit 77"}; {fill}; mountpoint -q {where} || exit 77; "$@"; s=$?; '
    line += f"cat {where}/pub/file >&2; ls {where}/all >&2; umount -l {where}; exit $s"
    prefix = ["unshare", "-m", "--propagation", "private", "bash", "-c", line, "sh"]
    script = (
        f"cd {where} && cat secret closed/secret deep/er/secret pub/group pub/user; ls closed; for u in 0 1000 42; do setpriv --reuid $u --regid 42 --clear-groups cat secret pub/group pub/user; done; "
        "echo written >>pub/file; touch all/new; echo over"
    )
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(container, transport, "-v", command=["/bin/bash", "-c", script], prefix=prefix, timeout=60)
        if done.returncode == 77:
            pytest.skip(f"{kind} can't be mounted here")
        if transport == "mount" and kind == "overlay":
            assert f"{where} ({kind}): overlaid" in done.stderr, "no other reason is searched for"
        assert "over" in done.stdout, done
        assert canary.secret not in done.stdout, done
        assert "written" not in done.stderr, done
        assert "new" not in done.stderr.split(), done


@pytest.mark.parametrize("source", ["container", "directory"])
def test_other_tools_are_protected_like_the_hosts(accomplice, canary, place, transport, source):
    """--tools CONTAINER and --tools DIR: what only root or a user may read there is not shown beside a hostile container either."""
    tools_root = place / "tools"
    with kit.hostile(place, accomplice, root=tools_root) as tools, kit.hostile(place, accomplice) as container:
        for name, mode, uid in (("secret", 0o600, 0), ("user", 0o600, 1000), ("group", 0o640, 0)):
            file = tools.write(f"/data/{name}", f"{canary.secret}\n", mode)
            os.chown(file, uid, 42)
        tools.write("/data/public", "public\n", 0o666)
        flags = ["--tools", str(tools_root) if source == "directory" else str(tools.pid)]
        done = kit.attach(
            container,
            transport,
            *flags,
            command=[
                "/bin/sh",
                "-c",
                "cat /data/secret /data/user /data/group; echo written >>/data/public; cat /data/public; echo over",
            ],
        )
        assert "over" in done.stdout, done
        assert canary.secret not in done.stdout
        assert (tools.root / "data/public").read_text() == "public\n"


# --- daemons of the host ----------------------------------------------------------------------------------------------

DIAL = (
    "import socket,sys\nfor path in sys.argv[1:]:\n s=socket.socket(socket.AF_UNIX)\n s.settimeout(2)\n"
    " try:\n  s.connect(path.replace('@','\\0',1) if path[0]=='@' else path)\n  print('talked to', path)\n except OSError as e: pass\n"
)


def listening(path: str, mode: int = 0o666) -> socket.socket:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path.replace("@", "\0", 1) if path.startswith("@") else path)
    if not path.startswith("@"):
        os.chmod(path, mode)
    unix.listen(8)
    return unix


@pytest.mark.parametrize(
    "where", ["/run", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/run/user", "/var/run", "/var/lib", "/opt"]
)
def test_no_daemon_of_the_host_is_talked_to(accomplice, canary, place, transport, where):
    """docker.sock, D-Bus, X11, a database: whoever may connect to them as uid 0 is their root."""
    if not os.path.isdir(where):
        pytest.skip(f"no {where} here")
    path = f"{where}/cntr-attack-{canary.secret[:8]}.sock"
    unix = listening(path)
    try:
        with kit.hostile(place, accomplice) as container:
            shown = kit.in_session(
                container, transport, f'python3 -c "{DIAL}" {path} /proc/1/root{path} /proc/self/root{path}'
            )
            assert "talked to" not in shown
    finally:
        unix.close()
        os.unlink(path)


@pytest.mark.parametrize(
    "how", ["by a relative name", "from another network", "while the session runs", "without a listener"]
)
def test_a_socket_that_is_harder_to_find(accomplice, canary, place, transport, how):
    """Everybody's, in a directory that is everybody's: whoever bound it, wherever, whenever."""
    path = canary.directory / "late.sock"
    kind = socket.SOCK_DGRAM if how == "without a listener" else socket.SOCK_STREAM
    unix = None

    def make() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        if how == "by a relative name":
            here = os.getcwd()
            os.chdir(canary.directory)
            made.bind("late.sock")
            os.chdir(here)
        else:
            made.bind(str(path))
        os.chmod(path, 0o666)
        if kind == socket.SOCK_STREAM:
            made.listen(8)
        return made

    dial = DIAL.replace("AF_UNIX)", "AF_UNIX, socket.SOCK_DGRAM)") if kind == socket.SOCK_DGRAM else DIAL
    try:
        with kit.hostile(place, accomplice) as container:
            if how == "from another network":
                from tests.attacks.test_b4_service import in_net_of

                unix = in_net_of(container.pid, make)
            elif how != "while the session runs":
                unix = make()
            if how == "while the session runs":
                from tests.nest.busybox import ask, session

                with session(str(container.pid), "--transport", transport) as shell:
                    unix = make()
                    shown = ask(shell, f'python3 -c "{dial}" {path} | grep talked || echo quiet')
            else:
                shown = kit.in_session(container, transport, f'python3 -c "{dial}" {path}')
            assert "talked to" not in shown
    finally:
        if unix:
            unix.close()
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["\0cntr-x /usr/bin/env", "x\n0: 2 0 10000 1 1 9 /usr/bin/env", "own/usr/bin/env"])
def test_a_sockets_name_covers_no_program(accomplice, canary, place, transport, name):
    """Any user binds sockets to any name: in /proc/net/unix it looks as if somebody listened at a program's path."""
    unix = socket.socket(socket.AF_UNIX)
    here, path = os.getcwd(), name.partition("/")[0]
    if name.startswith("own"):  # in a root directory of the user's own it has that very path
        (place / "own/usr/bin").mkdir(parents=True)
        line = f"import os, socket, time; os.chroot('{place}/own'); s = socket.socket(1); s.bind('/usr/bin/env'); s.listen(); print('ready', flush=True); time.sleep(60)"
        binder = subprocess.Popen(["python3", "-c", line], stdout=subprocess.PIPE)
        assert binder.stdout
        assert binder.stdout.readline() == b"ready\n"
    elif name[0] == "\0":
        unix.bind(name)
    else:
        os.makedirs(f"{place}/{path}/usr/bin")
        os.chdir(place)
        unix.bind(name)
        os.chdir(here)
    if not name.startswith("own"):
        unix.listen()
    try:
        with kit.hostile(place, accomplice) as container:
            assert kit.in_session(container, transport, "/usr/bin/env echo here") == "here\n"
    finally:
        unix.close()
        if name.startswith("own"):
            binder.kill()
            binder.communicate()


@pytest.mark.parametrize(("mode", "overlaid", "shown"), [(0o700, True, 0), (0o755, True, 300), (0o755, False, 0)])
def test_files_without_number_stop_no_session(accomplice, canary, place, mode, overlaid, shown):
    """Each container's tree is a mount of the host's, an overlay: what it is filled with is not looked through where others can't get to it.

    Where they can, an overlay shows it without looking; where there can be none, more than is looked at is not shown.
    """
    lower, where = place / "lower", canary.directory / "canary.open" / "containers"
    (lower / "l").mkdir(parents=True)
    for number in range(300):
        (lower / "l" / str(number)).touch()
    line = (
        f"mkdir -m {mode:o} {where}; mkdir {where}/tree; mount -t tmpfs x {place}/up; mkdir {place}/up/u {place}/up/w; "
        f"mount -t overlay -o lowerdir={lower}/l,upperdir={place}/up/u,workdir={place}/up/w o {where}/tree || exit 77; "
        f'"$@"; s=$?; umount -l {where}/tree; rm -r {where}; exit $s'
    )
    (place / "up").mkdir()
    without = (
        "" if overlaid else "import cntr.linux.nobodys_overlay as n; n._mount = lambda *_: v.os.open('/none', 0); "
    )
    code = f"import sys, cntr.attach.view as v; v.LOOKED_AT = 200; {without}from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with kit.hostile(place, accomplice) as container:
        done = run(
            *(
                "attach",
                str(container.pid),
                "--transport",
                "mount",
                "--",
                "/bin/sh",
                "-c",
                f"echo here; ls {where}/tree | wc -l",
            ),
            prefix=["unshare", "-m", "--propagation", "private", "bash", "-c", line, "sh"],
            code=code,
        )
    if done.returncode == 77:
        pytest.skip("no overlay can be mounted here")
    assert done.stdout == f"here\n{shown}\n", done


def test_control_a_daemon_can_be_talked_to(canary):
    path = f"/run/cntr-attack-{canary.secret[:8]}.sock"
    unix = listening(path)
    try:
        done = subprocess.run(["python3", "-c", DIAL, path], capture_output=True, text=True, check=False)
        assert f"talked to {path}" in done.stdout
    finally:
        unix.close()
        os.unlink(path)


def test_abstract_sockets_of_the_hosts_network(accomplice, canary, place, transport):
    """They are excluded by the container's network namespace; X11 listens so."""
    unix = listening(f"@cntr-attack-{canary.secret[:8]}")
    with kit.hostile(place, accomplice) as container:
        assert "talked to" not in kit.in_session(
            container, transport, f'python3 -c "{DIAL}" @cntr-attack-{canary.secret[:8]}'
        )
    unix.close()


def test_the_hosts_proc_and_sys_are_not_visible(accomplice, canary, place, transport):
    """Of /proc the container's own; nothing of the host's processes, by any mount of the session."""
    with kit.hostile(place, accomplice) as container:
        shown = kit.in_session(
            container,
            transport,
            "cat /proc/self/mountinfo; ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm",
        )
        procs = [line for line in shown.splitlines() if re.search(r" - proc ", line)]
        assert len(procs) >= 2, "the container's /proc, at /proc and below the base directory"
        assert shown.splitlines()[-1] == "app"
        for line in procs:
            where = line.split()[4]
            if line.split()[3] != "/":
                continue  # a part of it, over which the container's engine has put something
            assert kit.in_session(container, transport, f"cat {where}/1/comm") == "app\n", line


def test_kernel_settings_are_not_a_sessions(accomplice, canary, place, transport):
    """By root's tools in a session: what the container's /proc/sys refuses, and /sys, are as read-only as for the container."""
    with kit.hostile(place, accomplice) as container:
        before = pathlib.Path("/proc/sys/vm/swappiness").read_text()
        shown = kit.in_session(
            container,
            transport,
            "echo 1 >/sys/kernel/mm/transparent_hugepage/enabled; echo x >/sys/power/state; echo b >/proc/sysrq-trigger_; dmesg -C; date -s 2001-01-01; hostname evil; mount; true",
        )
        assert pathlib.Path("/proc/sys/vm/swappiness").read_text() == before
        assert os.uname().nodename != "evil"
        assert shown


def test_inspect_and_verbose_say_how_each_mount_is_kept(accomplice, canary, place):
    with kit.hostile(place, accomplice) as container:
        done = run("attach", str(container.pid), "-v", "--", "true")
        assert done.returncode == 0
        assert "Traceback" not in done.stderr


NONE = """
import errno, sys
import cntr.linux.namespaces as n
def nobody():
    raise OSError(errno.ENOSPC, "No space left on device")
n.nobody = nobody
import cntr.attach.walk as w
w.namespaces_used_up = lambda number, real=w.namespaces_used_up: {used_up} and real(number)
from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))
"""


def test_on_a_machine_without_user_namespaces(accomplice, canary, place, transport):
    """Nothing can be idmapped: what others may not read is covered, sockets too."""
    path = canary.directory / "daemon.sock"
    unix = listening(str(path))
    script = f"cat {canary.path} {canary.file('group')} {canary.file('user')}; touch {canary.file('open')}/new; echo x >>{canary.file('public')}; "
    script += f'cat {canary.file("public")}; python3 -c "{DIAL}" {path}; echo over'
    try:
        with kit.hostile(place, accomplice) as container:
            done = kit.attach(
                container, transport, command=["/bin/bash", "-c", script], code=NONE.format(used_up=False)
            )
    finally:
        unix.close()
        path.unlink()
    assert done.stdout == f"{canary.secret} public\nover\n", done


def test_user_namespaces_that_are_used_up_open_nothing(accomplice, canary, place, transport):
    """A container without a user namespace counts as the host's root: it can hold all that root may have."""
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(container, transport, code=NONE.format(used_up=True))
        assert "make the tools view" in one_line_and_hint(done)
        assert "user namespaces is reached" in done.stderr


OVERLAY_ROOT = """
import os, subprocess, sys
from cntr.linux import syscalls
place, *binds = sys.argv[1].split(":")
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount("tmpfs", place, "tmpfs", 0)
for name in ("upper", "work", "root"):
    os.mkdir(f"{place}/{name}")
os.chmod(f"{place}/upper", 0o755)
options = f"lowerdir=/,upperdir={place}/upper,workdir={place}/work"
if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, f"{place}/root"], stderr=subprocess.DEVNULL).returncode:
    sys.exit(77)
for path in binds:
    os.makedirs(f"{place}/root{path}", exist_ok=True)
    syscalls.mount(path, f"{place}/root{path}", None, syscalls.MS_BIND | syscalls.MS_REC)
os.chdir(f"{place}/root")
syscalls.pivot_root(".", ".")
syscalls.umount(".", syscalls.MNT_DETACH)
os.chdir("/")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_a_machine_whose_root_is_an_overlay(accomplice, canary, place, transport):
    """As in a live system, or a container of tools: nothing is searched, and what becomes private in a session is so at once."""
    inner = place / "overlay"
    inner.mkdir()
    binds = [str(inner), "/proc", "/sys", "/dev", "/tmp", REPOSITORY, os.path.realpath(sys.prefix)]
    prefix = [sys.executable, "-c", OVERLAY_ROOT, ":".join(dict.fromkeys(binds))]
    script = (
        f"cat {canary.path} {canary.file('group')} {canary.file('user')}; cat {canary.file('public')}; echo x >>{canary.file('public')}; "
        f"touch {canary.file('open')}/new; ls /root/.ssh /etc/ssl/private; cat /etc/shadow; {canary.directory}/proof; python3 -c 'import json; print(json)'"
    )
    with kit.hostile(place, accomplice, capabilities=(1 << 41) - 1) as container:
        words = ("attach", str(container.pid), "-v", "--transport", transport, "--", "bash", "-c", script)
        done = run(*words, prefix=prefix, timeout=60)
    if done.returncode == 77:
        pytest.skip("no overlay can be mounted here")
    assert done.returncode == 0, done
    first, second = done.stdout.splitlines()
    assert first == f"{canary.secret} public", done
    assert second.startswith("<module 'json'"), done
    assert ("/ (overlay): overlaid" in done.stderr) == (transport == "mount"), done
