"""``cntr cp`` with real engines: user namespaces, tmpfs, volumes, read-only roots, paused containers, the rootless user."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

from testkit.engines import rigs
from tests.cli.trees import cp, done, look, make_tree

ENGINES = [
    *(("docker", variant) for variant in ("busybox", "scratch", "unprivileged", "paused")),
    *(("podman", "scratch"), ("runc", "userns"), ("runc", "paused"), ("docker_remapped", "scratch")),
    *(("docker_remapped", "unprivileged"), ("podman_rootless", "busybox"), ("podman_rootless", "keep_id")),
    *(("bwrap", "busybox"), ("bwrap", "no_proc"), ("byhand", "chroot"), ("byhand", "shared_root")),
]


@pytest.mark.parametrize(("rig", "variant"), ENGINES, ids=[f"{rig}-{variant}" for rig, variant in ENGINES])
def test_in_and_out_of_real_containers(request, tmp_path, rig, variant):
    """In the container, files belong to its root, whatever its user namespace; on the host, to the caller."""
    make_tree(tmp_path / "tree")
    with rigs.open_rig(request, rig).container(variant) as container:
        name = f"copied-{container.name}"  # bwrap's containers share one root
        done(cp(tmp_path / "tree", f"{container.target}:/{name}", env=container.env))
        fd = os.open(f"/proc/{container.pid}/root/{name}", os.O_PATH)
        try:
            rows = [line.split() for line in pathlib.Path(f"/proc/{container.pid}/uid_map").read_text().splitlines()]
            first = [int(outside) for inside, outside, _ in rows if inside == "0"]
            assert first, rows
            for directory, _, files, dir_fd in os.fwalk(".", dir_fd=fd):
                for file in [".", *files]:
                    assert os.stat(file, dir_fd=dir_fd, follow_symlinks=False).st_uid == first[0], (directory, file)
        finally:
            os.close(fd)
        done(cp(f"{container.target}:/{name}", tmp_path / "back", env=container.env))
        assert look(tmp_path / "back", owner=True) == look(tmp_path / "tree", owner=True)


@pytest.mark.parametrize("rig", ["docker", "podman_rootless", "runc"])
def test_a_tmpfs_is_seen(request, tmp_path, rig):
    (tmp_path / "file").write_text("x")
    with rigs.open_rig(request, rig).container("tmpfs") as container:
        done(cp(tmp_path / "file", f"{container.target}:/data", env=container.env))
        done(cp(f"{container.target}:/data/.", tmp_path / "back", env=container.env))
        assert (tmp_path / "back/file").read_text() == "x"
        if container.upper:
            assert not list(pathlib.Path(container.upper).rglob("file"))


@pytest.mark.parametrize("rig", ["docker", "podman_rootless"])
def test_a_volume_is_seen(request, tmp_path, rig):
    with rigs.open_rig(request, rig).container("volume") as container:
        done(cp(f"{container.target}:/data/mark", tmp_path / "mark", env=container.env))
        assert (tmp_path / "mark").read_text() == f"{container.name}\n"
        directory = pathlib.Path(container.rig.workspace.path, f"volume-{container.name}")
        if rig == "podman_rootless":  # in root's directory the container's root has no rights
            refused = cp(tmp_path / "mark", f"{container.target}:/data/new", env=container.env)
            assert refused.returncode == 125
            assert b"Permission denied\nhint: it belongs to an owner that" in refused.stderr
            os.chown(directory, container.rig.uid, container.rig.uid)
        done(cp(tmp_path / "mark", f"{container.target}:/data/new", env=container.env))
        assert (directory / "new").read_text() == f"{container.name}\n"


def test_a_read_only_root_is_reported(docker, tmp_path):
    (tmp_path / "file").write_text("x")
    with docker.container("read_only") as container:
        result = cp(tmp_path / "file", f"{container.target}:/", env=container.env)
        assert result.returncode == 125
        assert b"Read-only file system\nhint: " in result.stderr
        done(cp(f"{container.target}:/etc/motto", tmp_path / "motto", env=container.env))
        done(cp(tmp_path / "motto", f"{container.target}:/dev/shm", env=container.env))
        for path, hint in (
            ("/proc/1/environ", b"those who may trace"),
            ("/no", f"attach {container.target}`".encode()),
        ):
            result = cp(f"{container.target}:{path}", tmp_path / "none", env=container.env)
            assert result.returncode == 125
            assert hint in result.stderr, path


def test_a_file_that_is_a_mount_is_written_in_place(docker, tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 here\n")
    with docker.container() as container:
        hosts = pathlib.Path(f"/proc/{container.pid}/root/etc/hosts")
        before = hosts.stat().st_ino
        done(cp(tmp_path / "hosts", f"{container.target}:/etc/hosts", env=container.env))
        assert hosts.read_text() == "127.0.0.1 here\n"
        assert hosts.stat().st_ino == before


@pytest.mark.parametrize("variant", ["busybox", "keep_id"])
@pytest.mark.usefixtures("other_users")
def test_the_owner_of_a_rootless_container_needs_no_root(podman_rootless, tmp_path, variant):
    """The host's side is read and written with the user's rights only."""
    rig = podman_rootless
    home = pathlib.Path(rig.workspace.path, "home-slim", f"cp-{variant}")
    home.mkdir()
    make_tree(home / "tree")
    (home / "secret").write_text("root's")
    (home / "secret").chmod(0o600)
    for path in home.rglob("*"):
        if path.name != "secret":
            os.lchown(path, rig.uid, rig.uid)
    for path in (home / "tree").iterdir():
        if path.is_file() and not path.is_symlink():
            # Without root, even an own file with mode 000 can't be read.
            path.chmod(path.stat().st_mode & 0o777 | 0o400)
    os.chown(home, rig.uid, rig.uid)
    user = {"user": rig.uid, "group": rig.uid, "extra_groups": [], "cwd": pathlib.Path(__file__).parents[2]}
    with rig.container(variant) as container:
        env = {**rig.workspace.env, **container.rig.settings}
        done(cp(home / "tree", f"{container.target}:/copied", env=env, **user))
        inside = os.stat(f"/proc/{container.pid}/root/copied/plain")
        rows = [line.split() for line in pathlib.Path(f"/proc/{container.pid}/uid_map").read_text().splitlines()]
        assert inside.st_uid == next(int(row[1]) for row in rows if row[0] == "0")
        done(cp(f"{container.target}:/copied", home / "back", env=env, **user))
        assert look(home / "back", owner=True) == look(home / "tree", owner=True)
        refused = cp(home / "secret", f"{container.target}:/", env=env, **user)
        assert refused.returncode == 125
        assert b"secret: Permission denied\nhint: " in refused.stderr


def test_without_a_root_in_its_user_namespace(bwrap, tmp_path):
    """With bwrap --unshare-user --uid 1000 there is no root; files belong to the only id."""
    (tmp_path / "file").write_text("x")
    root = pathlib.Path(bwrap.workspace.path, "nobody-root")
    if not root.exists():
        subprocess.run(["cp", "-a", bwrap.roots["busybox"], root], check=True)
    reading, writing = os.pipe()
    flags = ["--unshare-all", "--as-pid-1", "--uid", "1000", "--gid", "1000", "--die-with-parent"]
    flags += ["--info-fd", str(writing), "--bind", str(root), "/", "--proc", "/proc"]
    process = subprocess.Popen(
        ["bwrap", *flags, "--", "/bin/sleep", "1000"],
        pass_fds=(writing,),
    )
    os.close(writing)
    try:
        with open(reading, "rb") as stream:
            pid = json.loads(stream.read())["child-pid"]
        bwrap.workspace.wait_for("bwrap", lambda: "busybox" in os.readlink(f"/proc/{pid}/exe"))
        done(cp(tmp_path / "file", f"{pid}:/tmp/file"))
        shown = pathlib.Path(root, "tmp/file")
        assert shown.read_text() == "x"
        done(cp(f"{pid}:/tmp/file", tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "x"
    finally:
        process.kill()
        process.wait(10)
