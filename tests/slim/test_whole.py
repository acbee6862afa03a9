"""``cntr slim`` as a whole: a busybox image in real engines, and as an archive without an engine."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from testkit.engines import workspaces
from testkit.engines.rigs_containerd import docker_archive

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs containers")
pytestmark = [needs_root, pytest.mark.timeout(300)]


def slim(*words: str, env: dict[str, str] | None = None, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {**(env or os.environ), "TMPDIR": str(cwd), "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", "cntr", "slim", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> str:
    """An image of busybox with a page to serve and a large file that is never requested."""
    missing = [name for name in ("busybox", "runc") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
    place = tmp_path_factory.mktemp("image")
    root = pathlib.Path(workspaces.busybox_root(str(place / "root")))
    (root / "data/index.html").write_text('<a href="/more">more</a>')
    (root / "data/more").write_text("more\n")
    (root / "data/unused").write_bytes(os.urandom(1 << 20))
    (root / "data/run").write_text("#!/bin/sh\nexec busybox httpd -f -p 8000 -h /data\n")
    (root / "data/run").chmod(0o755)
    return docker_archive(str(place / "archive"), str(root), "localhost/served:1", ["/data/run"])


def names(path: pathlib.Path) -> dict[str, tarfile.TarInfo]:
    """The names in an archive's only layer."""
    with tarfile.open(path) as outer:
        (row,) = json.load(outer.extractfile("manifest.json"))
        with tarfile.open(fileobj=outer.extractfile(row["Layers"][0])) as inner:
            return {member.name: member for member in inner}


def test_an_archive_is_split_without_an_engine(archive, tmp_path):
    done = slim(
        f"archive:{archive}",
        "--http",
        "8000",
        "-o",
        "one.tar",
        "--fat",
        "fat.tar",
        "--explain",
        "/data/more",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    members = names(tmp_path / "one.tar")
    assert {"bin/busybox", "bin/sh", "data/run", "data/index.html", "data/more", "etc/passwd", "tmp"} <= members.keys()
    assert "data/unused" not in members
    assert members["tmp"].mode == 0o1777
    assert "kept: /data/more" in done.stdout
    assert "both together are the image" in done.stderr
    again = slim(f"archive:{archive}", "--http", "8000", "-o", "two.tar", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    same = slim("diff", f"archive:{archive}", "archive:one.tar", "archive:fat.tar", cwd=tmp_path)
    assert (same.returncode, same.stdout.splitlines()[-1].split(" ")[0]) == (0, "0"), same.stdout
    differs = slim("diff", f"archive:{archive}", "archive:one.tar", cwd=tmp_path)
    assert differs.returncode == 1
    assert "- /data/unused" in differs.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"one.tar", "two.tar", "fat.tar"}


def layers_of(path: pathlib.Path) -> list[tuple[str, set[str]]]:
    """(digest, names) of each layer."""
    with tarfile.open(path) as outer:
        (row,) = json.load(outer.extractfile("manifest.json"))
        found = []
        for name in row["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(name)) as inner:
                found.append((name, {member.name for member in inner}))
        assert len(json.load(outer.extractfile(row["Config"]))["history"]) == len(found)
        return found


def test_another_build_of_the_application_leaves_the_systems_layer(archive, tmp_path):
    first = ["--layers", "2", "--app", "/data", "--http", "8000", "-o"]
    done = slim(f"archive:{archive}", *first, "one.tar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (system, kept), (_, own) = layers_of(tmp_path / "one.tar")
    assert {"bin/busybox", "etc/passwd"} <= kept
    assert {"data", "data/index.html", "data/unused", "."} == own - {"data/more", "data/run"}
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(archive) as outer:
        (row,) = json.load(outer.extractfile("manifest.json"))
        layer = outer.extractfile(row["Layers"][0]).read()
    subprocess.run(["tar", "-C", root, "-x"], input=layer, check=True)
    (root / "data/index.html").write_text("another build")
    other = docker_archive(str(tmp_path / "other"), str(root), "localhost/served:1", ["/data/run"])
    again = slim(f"archive:{other}", *first, "two.tar", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    changed = layers_of(tmp_path / "two.tar")
    assert changed[0][0] == system
    assert changed[1][0] != layers_of(tmp_path / "one.tar")[1][0]
    whole = slim(f"archive:{archive}", "--app", "/data", "--http", "8000", "-o", "whole.tar", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    same = slim("diff", "archive:whole.tar", "archive:one.tar", cwd=tmp_path)
    assert (same.returncode, same.stdout.splitlines()[-1].split(" ")[0]) == (0, "0"), same.stdout


SLOW_MOUNT = """
import sys, time
from cntr.linux import syscalls
quick = syscalls.unshare
syscalls.unshare = lambda flags: (time.sleep(0.5), quick(flags))[1]
from cntr.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_the_file_server_waits_for_its_mount(archive, tmp_path):
    """The process that holds the mount may be late."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    words = ["slim", f"archive:{archive}", "--http", "8000", "-o", "slim.tar"]
    done = subprocess.run(
        [sys.executable, "-c", SLOW_MOUNT, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--http", "9999", "--timeout", "1s"], "no answer in time"),
        (["--http", "8000", "--cmd", "/bin/busybox false"], "ended with status 1"),
        (["--http", "8000", "--drop", "/data/run"], "does not work"),
        (["--http", "8000", "--keep", "/nothing/*"], "nothing in the image matches"),
        (["--", "false"], "exit status 1"),
    ],
    ids=["never answers", "ends", "what it needs is dropped", "no such file", "the exercise fails"],
)
def test_failures_are_reported_and_leave_nothing(archive, tmp_path, words, says):
    extra = [] if "--timeout" in words else ["--timeout", "3s"]
    done = slim(f"archive:{archive}", "-o", "slim.tar", *extra, *words, cwd=tmp_path)
    assert done.returncode == (1 if says == "does not work" else 125)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def configured(archive: str, place: pathlib.Path, **changes: object) -> str:
    """A copy of the archive with another configuration."""
    place.mkdir()
    with tarfile.open(archive) as image:
        for member in image:
            (place / member.name).write_bytes(image.extractfile(member).read())
    config = json.loads((place / "config.json").read_text())
    config["config"].update({key: value for key, value in changes.items() if key[0].isupper()})
    config.update({key: value for key, value in changes.items() if not key[0].isupper()})
    (place / "config.json").write_text(json.dumps(config))
    with tarfile.open(f"{place}.tar", "w") as image:
        for path in place.iterdir():
            image.add(path, path.name)
    return f"archive:{place}.tar"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "s390x" if os.uname().machine != "s390x" else "amd64"}, "is an image for"),
        ({"os": "windows"}, "is an image for windows"),
        ({"User": "nobody-knows"}, "the image's user nobody-knows is not in its /etc/passwd"),
        ({"Cmd": None}, "the image has neither Entrypoint nor Cmd"),
        ({"Cmd": ["/no/such"]}, 'exec: "/no/such"'),
        ({"Cmd": {"a": 1}}, "Cmd in its configuration is dict, not list"),
        ({"Healthcheck": "x"}, "Healthcheck in its configuration is str, not dict"),
        ({"ExposedPorts": [1]}, "ExposedPorts in its configuration is list, not dict"),
    ],
    ids=["processor", "system", "user", "no command", "no program", "a command", "a health check", "ports"],
)
def test_an_image_that_cannot_run_is_refused_in_one_line(archive, tmp_path, changes, says):
    work = tmp_path / "work"
    work.mkdir()
    done = slim(configured(archive, tmp_path / "image", **changes), "--http", "8000", cwd=work)
    assert done.returncode == 125
    *steps, error, hint = done.stderr.splitlines()
    assert says in error
    assert hint.startswith("hint: ")
    assert all(" s  " in line for line in steps)
    assert list(work.iterdir()) == []


def test_an_invalid_page_is_reported(archive, tmp_path):
    done = slim(f"archive:{archive}", "--http", "8000/no-such", "--verify", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = "GET http://127.0.0.1:8000/no-such (status 404)"
    assert f"{asked}: only what it takes to say so is recorded" in done.stderr
    assert f"exercise  {asked}\n" in done.stdout


def engine_images(rig) -> set[str]:
    return set(rig.command("images", "-q", "--no-trunc").split())


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engines_image_is_recorded_proved_and_loaded(request, archive, tmp_path, engine):
    rig = request.getfixturevalue(engine)
    environment = {**rig.workspace.env, **rig.settings}
    if engine == "podman":
        wrapper = tmp_path.parent / f"{tmp_path.name}-bin"
        wrapper.mkdir()
        # the rig's podman has its store and runtime in its command line
        (wrapper / "podman").write_text(
            f'#!/bin/sh\nexec {" ".join(rig.cli[:-3]).replace("podman", shutil.which("podman"), 1)} "$@"\n'
        )
        (wrapper / "podman").chmod(0o755)
        environment["PATH"] = f"{wrapper}:{environment['PATH']}"
    rig.command("load", "-i", archive)
    before = engine_images(rig)
    target = f"{engine}:localhost/served:1"
    failed = slim(target, "--http", "9999", "--timeout", "1s", env=environment, cwd=tmp_path)
    assert failed.returncode == 125, failed.stdout
    assert "no answer in time" in failed.stderr
    for words, says in ((["--cmd", "/no/such"], "no such file"), (["--cmd", "/bin/sh -c 'exit 3'"], "with status 3")):
        *_, error, hint = slim(target, *words, env=environment, cwd=tmp_path).stderr.splitlines()
        assert says in error
        assert hint.startswith("hint: what it needs is given with "), hint
    done = slim(
        target, "--http", "8000", "--load", "-t", "localhost/slim-served:2", "--json", env=environment, cwd=tmp_path
    )
    try:
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        steps = [json.loads(line) for line in done.stderr.splitlines()]
        assert {event["event"] for event in steps} == {"step"}
        assert all(event["text"] and event["seconds"] >= 0 for event in steps)
        assert report["recorder"] == "fanotify"
        assert report["on_cntrfs"]
        assert report["in_engine"] == engine
        assert report["after"]["bytes"] < report["before"]["bytes"] - (1 << 20) + 4096
        assert rig.command("ps", "-aq") == ""
        assert engine_images(rig) - before == {f"sha256:{report['slim_id']}"}
        assert list(tmp_path.iterdir()) == []
    finally:
        rig.command("rmi", "-f", "localhost/slim-served:2")
        rig.command("rmi", "-f", "localhost/served:1")


def test_a_watched_container_is_left_alone(docker, tmp_path):
    with docker.container("busybox") as container:
        pid = container.pid
        process = subprocess.Popen(
            [sys.executable, "-m", "cntr", "slim", container.target, "--watch", "--accesses", "uses", "--for", "3s"],
            env={**container.env, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if "watching" in line:
                break
        docker.command("exec", container.name, "/bin/cat", "/etc/motto")
        process.stderr.read()
        process.stderr.close()
        assert process.wait() == 0
        assert os.path.exists(f"/proc/{pid}")
    text = (tmp_path / "uses").read_text()
    assert "open /etc/motto\n" in text
    assert "exec /bin/busybox\n" in text


def test_nothing_is_left_when_it_is_killed(archive, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "cntr", "slim", f"archive:{archive}", "--http", "9999", "--timeout", "60s"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not _served(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def _served(pid: int) -> bool:
    """Whether a child of PID serves CntrFS, that is, the run has begun."""
    children = pathlib.Path("/proc", str(pid), "task", str(pid), "children").read_text().split()
    return any("cntrfs" in pathlib.Path("/proc", child, "comm").read_text() for child in children)


def test_a_user_without_root_splits_their_own_image(podman_rootless, other_users, archive):
    rig = podman_rootless
    shutil.copy(archive, f"{rig.workspace.path}/served.tar")
    os.chmod(f"{rig.workspace.path}/served.tar", 0o644)
    rig.command("load", "-i", f"{rig.workspace.path}/served.tar")
    work = pathlib.Path(rig.workspace.path, "home-slim")
    as_user = [*rig.cli[: rig.cli.index("podman")]]
    if not os.stat("/dev/fuse").st_mode & 0o006:  # without udev; with it, everybody may usually open it
        os.mknod(f"{rig.workspace.path}/fuse", 0o20666, os.makedev(10, 229))
        os.chmod(f"{rig.workspace.path}/fuse", 0o666)
        bind = f'mount --bind {rig.workspace.path}/fuse /dev/fuse; exec "$@"'
        as_user[as_user.index("setpriv") : as_user.index("setpriv")] = ["sh", "-c", bind, "sh"]
        rig.command("system", "migrate")  # Podman's pause process holds a mount namespace without it
    environment = {
        **rig.workspace.env,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        words = ["podman:localhost/served:1", "--http", "8000", "-o", f"{work}/slim.tar", "--json"]
        done = subprocess.run(
            [*as_user, sys.executable, "-m", "cntr", "slim", *words],
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["recorder"], report["on_cntrfs"], report["in_engine"]) == ("CntrFS", True, "podman")
        members = names(work / "slim.tar")
        assert "data/unused" not in members
        assert {members[name].uid for name in ("bin/busybox", "data/run", "tmp")} == {0}
        assert rig.command("ps", "-aq") == ""
        assert not [
            path for path in pathlib.Path(rig.workspace.path, "tmp").iterdir() if path.name.startswith("cntr-slim-")
        ]
    finally:
        rig.command("rmi", "-f", "localhost/served:1")


def test_containerds_image_is_recorded_and_proved(containerd, archive, tmp_path):
    rig = containerd
    environment = {**rig.workspace.env, "CONTAINERD_ADDRESS": rig.socket, "CONTAINERD_NAMESPACE": rig.namespace}
    workspaces.run([*rig.cli, "image", "import", archive], env=rig.workspace.env)
    before = workspaces.run([*rig.cli, "image", "ls", "-q"], env=rig.workspace.env)
    try:
        done = slim(
            "containerd:localhost/served:1", "--http", "8000", "-o", "slim.tar", "--json", env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["recorder"], report["on_cntrfs"], report["in_engine"]) == ("fanotify", True, "containerd")
        assert "data/unused" not in names(tmp_path / "slim.tar")
        assert workspaces.run([*rig.cli, "image", "ls", "-q"], env=rig.workspace.env) == before
        assert "cntr-slim" not in workspaces.run([*rig.cli, "container", "ls"], env=rig.workspace.env)
        assert "cntr-slim" not in workspaces.run([*rig.cli, "snapshot", "ls"], env=rig.workspace.env)
        assert [path.name for path in tmp_path.iterdir()] == ["slim.tar"]
    finally:
        workspaces.run([*rig.cli, "image", "rm", "localhost/served:1"], env=rig.workspace.env)
