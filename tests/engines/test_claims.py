"""What users may claim: a user of this machine writes state files, listens on sockets, and names processes like
engines' monitors.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cntr import engines
from cntr.engines import commands, docker, evidence, listing, names, trust
from cntr.errors import CntrError, TargetNotFound
from cntr.images import containerd_store
from cntr.linux import procfs
from testkit.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's claims"),
    pytest.mark.usefixtures("other_users"),
]
USER = 4200 + os.getpid() % 90  # only this worker's, since its runtime directory is the machine's
ID = "5e" * 32
CLAIMED = f"claimed{os.getpid()}"
NAME = f"web{os.getpid()}"  # other workers' users also have containers
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all"]


@pytest.fixture
def home(monkeypatch):
    """The user's runtime directory; no variable leads to this machine's engines."""
    for name in list(os.environ):
        if name.startswith(("DOCKER_", "CONTAINERS_", "CNTR_", "LXD_", "INCUS_", "APPTAINER_")):
            monkeypatch.delenv(name)
    path = pathlib.Path(f"/run/user/{USER}")
    made = [parent for parent in (path, path.parent) if not parent.exists()]
    path.mkdir(parents=True)
    own(path)
    yield path
    shutil.rmtree(path)
    for parent in made[1:]:
        try:
            parent.rmdir()
        except OSError:
            pass  # it contains another worker's directory


def own(path: pathlib.Path) -> pathlib.Path:
    os.chown(path, USER, USER, follow_symlinks=False)
    return path


def write(path: pathlib.Path, text: object) -> pathlib.Path:
    """Write a file and its directories as the user."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            own(parent)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return own(path)


class users_process(subprocess.Popen):
    """Code run by the user; it prints ``up`` or the interesting pid when it is ready."""

    def __init__(self, code: str, *arguments: str):
        command = [*AS_USER, sys.executable, "-c", code, *arguments]
        super().__init__(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd="/")
        assert self.stdout
        self.said = self.stdout.readline().strip()
        assert self.said, "it has ended"

    def __exit__(self, *error):
        os.killpg(self.pid, 9)
        super().__exit__(*error)


# A child in a user namespace of the user's, whose parent has the arguments of an engine's monitor.
CONTAINER = """
import os, subprocess, sys
child = subprocess.Popen(["unshare", "-Ur", "sleep", "300"])
while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
    pass
print(child.pid, flush=True)
child.wait()
"""
# Answers each request on a socket with a file.
DAEMON = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
listener.listen()
print("up", flush=True)
while True:
    stream = listener.accept()[0]
    stream.recv(4096)
    with open(sys.argv[2], "rb") as body:
        stream.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + body.read())
    stream.close()
"""


def inspected(pid: int, id: str = ID, name: str = NAME) -> dict[str, object]:
    state = {"Pid": pid, "Paused": False, "Status": "running", "ExitCode": 0}
    return {"Id": id, "Name": f"/{name}", "State": state, "Config": {"Image": "x"}, "HostConfig": {}}


def listed() -> list[engines.Container]:
    return listing.running()[0]


@pytest.fixture
def victim():
    """A process of root's, with nothing in its cgroup and parent that the user chose."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process.pid
        process.kill()


def nobody_is_called(*names: str) -> None:
    for name in names:
        with pytest.raises(CntrError):
            engines.verify(engines.resolve(name))


# --- a user's word is about the user's own processes ------------------------------------------------------------------


@pytest.mark.parametrize("id", ["", "0", "us", "er", ID, "system.slice", "/"], ids=ascii)
def test_a_users_docker_socket_names_no_process_of_others(home, victim, id):
    write(home / "answer", inspected(victim, id))
    with users_process(DAEMON, f"{home}/docker.sock", f"{home}/answer"):
        nobody_is_called(NAME, f"docker:{NAME}")
        write(home / "answer", [{"Id": id, "Names": [f"/{NAME}"], "State": "running", "Image": "x"}])
        assert victim not in [found.pid for found in listed()]


def test_a_users_docker_socket_names_the_users_own_container_and_root_is_told_whose(home, monkeypatch):
    with users_process(CONTAINER, "-c", ID) as process:
        pid = int(process.said)
        write(home / "answer", inspected(pid))
        with users_process(DAEMON, f"{home}/docker.sock", f"{home}/answer"):
            for target in (NAME, f"docker:{NAME}"):
                found = engines.resolve(target)
                assert (found.engine, found.pid, found.owner) == ("docker", pid, USER)


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("place", ["the user's", "everybody's", "a link of the user's"])
def test_a_socket_where_a_user_could_put_it(home, victim, tmp_path, monkeypatch, variable, place):
    """Also if root's own variable names it: root chose the path, but not what is there."""
    directory = home / "deep"
    directory.mkdir()
    own(directory)
    socket = directory / "docker.sock"
    if place == "everybody's":
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        for parent in (tmp_path, *tmp_path.parents):
            if parent != pathlib.Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
            else:
                break
        socket = shared / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}") if variable else None
    write(home / "answer", inspected(victim))
    listens = f"{home}/other.sock" if place.startswith("a link") else str(socket)
    if place.startswith("a link"):
        own(socket) if socket.exists() else socket.symlink_to(listens)
    with users_process(DAEMON, listens, f"{home}/answer"):
        nobody_is_called(f"docker:{NAME}", NAME)


@pytest.mark.parametrize("engine", ["crun", "runc"])
def test_a_users_runtime_state(home, victim, engine):
    def state(pid: int) -> dict[str, object]:
        start = procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
        names = ("pid", "process-start-time") if engine == "crun" else ("init_process_pid", "init_process_start")
        return dict(zip(names, (pid, start)))

    file = home / engine / NAME / ("status" if engine == "crun" else "state.json")
    write(file, state(victim))
    nobody_is_called(NAME, f"{engine}:{NAME}")
    assert victim not in [found.pid for found in listed()]
    with users_process(CONTAINER) as process:
        write(file, state(int(process.said)))
        assert (engines.resolve(NAME).pid, engines.resolve(NAME).owner) == (int(process.said), USER)
        assert [found.owner for found in listed() if found.pid == int(process.said)] == [USER]


@pytest.mark.parametrize("names", [[NAME], [f"k8s_app_{NAME}_prod_8f0b_0"]], ids=["podman", "cri-o"])
def test_a_users_store_that_a_variable_of_roots_names(home, victim, monkeypatch, names):
    """For Podman and CRI-O; the store is the user's."""
    conf = write(home / "conf", f'[storage]\ngraphroot = "{home}/graph"\nrunroot = "{home}/run"\n')
    write(home / "graph/overlay-containers/containers.json", [{"id": ID, "names": names, "layer": ID}])
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    code = CONTAINER.replace('"unshare", "-Ur", ', "")
    with subprocess.Popen([sys.executable, "-c", code, "-c", ID], stdout=subprocess.PIPE, text=True) as roots:
        assert roots.stdout
        pid = int(roots.stdout.readline())
        write(home / "run/overlay-containers" / ID / "userdata/pidfile", str(pid))
        nobody_is_called(NAME, f"podman:{NAME}", f"k8s:{NAME}", f"k8s:prod/{NAME}/app")
        os.kill(pid, 9)
    with users_process(CONTAINER, "-c", ID) as process:
        write(home / "run/overlay-containers" / ID / "userdata/pidfile", process.said)
        found = engines.resolve(f"podman:{NAME}" if names == [NAME] else f"k8s:prod/{NAME}/app")
        assert (found.pid, found.owner) == (int(process.said), USER)


def test_roots_stale_file_and_a_user_who_waited_for_the_pid(tmp_path, monkeypatch):
    """The mark is in the arguments of a parent that is the user's own."""
    monkeypatch.setenv("CNTR_CONTAINERD_ROOT", str(tmp_path))
    task = tmp_path / "io.containerd.runtime.v2.task/default" / ID
    task.mkdir(parents=True)
    for prefix in (CONTAINER, CONTAINER.replace('"unshare", "-Ur", ', "")):
        with users_process(prefix, "-c", ID) as process:
            (task / "init.pid").write_text(process.said)
            nobody_is_called(f"containerd:{ID}")


@pytest.mark.parametrize("what", ["its name", "its source"])
def test_roots_stale_file_and_a_mount_of_a_users(tmp_path, monkeypatch, what):
    """A user's FUSE file system, in the mount namespace of all, is mounted at a directory that is called as the container."""
    monkeypatch.setenv("CNTR_CONTAINERD_ROOT", str(tmp_path / "state"))
    task = tmp_path / "state/io.containerd.runtime.v2.task/default" / ID
    task.mkdir(parents=True)
    place = tmp_path / (ID if what == "its name" else "other")
    place.mkdir()
    source = ID if what == "its source" else "x"
    script = f"mount -t tmpfs {source} {place}; echo up; exec {' '.join(AS_USER)} sleep 300"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        (task / "init.pid").write_text(str(process.pid))
        assert ID in pathlib.Path(f"/proc/{process.pid}/mountinfo").read_text()
        nobody_is_called(f"containerd:{ID}")
        process.kill()


def test_a_directory_that_anybody_may_write_to_is_nobodys_word(tmp_path, monkeypatch, victim):
    root = tmp_path / "runc"
    (root / NAME).mkdir(parents=True)
    start = procfs.start_time(procfs.read(f"/proc/{victim}/stat"))
    (root / NAME / "state.json").write_text(json.dumps({"init_process_pid": victim, "init_process_start": start}))
    monkeypatch.setenv("CNTR_RUNC_ROOT", str(root))
    assert engines.resolve(f"runc:{NAME}").pid == victim
    root.chmod(0o777)
    with pytest.raises(TargetNotFound, match="others than root can write there"):
        engines.resolve(f"runc:{NAME}")
    root.chmod(0o755)
    (root / NAME).chmod(0o777)
    nobody_is_called(f"runc:{NAME}")
    (root / NAME).chmod(0o755)
    os.chown(root / NAME / "state.json", USER, USER)
    nobody_is_called(f"runc:{NAME}")


# --- processes that call themselves as monitors are called ------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "title"),
    [
        (f"nspawn:{CLAIMED}", ["systemd-nspawn", "-M", CLAIMED]),
        (f"lxc:{CLAIMED}", [f"[lxc monitor] /var/lib/lxc {CLAIMED}"]),
        (f"apptainer:{CLAIMED}", [f"Apptainer instance: root [{CLAIMED}]"]),
        (f"podman:{CLAIMED}", ["conmon", "-c", ID, "-n", CLAIMED, "-p", "{}/pidfile"]),
    ],
    ids=["nspawn", "lxc", "apptainer", "podman"],
)
@pytest.mark.parametrize("dumpable", [True, False])
def test_a_process_with_a_monitors_arguments(home, victim, target, title, dumpable):
    """The files in /proc of an undumpable process belong to root (proc(5)), so ownership goes by its ids."""
    write(home / "pidfile", str(victim))
    arguments = [word.format(home) for word in title]
    code = (
        "import ctypes, os, sys, time\n"
        "if os.fork() == 0:\n time.sleep(300)\n"
        f"{'' if dumpable else 'ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)'}\n"
        "print('up', flush=True); time.sleep(300)"
    )
    command = [*AS_USER, "bash", "-c", 'exec -a "$0" "$@"', arguments[0], sys.executable, "-c", code, *arguments[1:]]
    home_of_python = {"PYTHONHOME": sys.base_prefix}  # under another name it may not find its modules
    options = {"start_new_session": True, "text": True, "cwd": "/", "env": {**os.environ, **home_of_python}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "up\n"
            for found in [*listed(), *_resolved(target), *_resolved(CLAIMED)]:
                if found.name.endswith(CLAIMED):
                    assert found.owner == USER, (found.engine, found.pid)
                    assert evidence.uid_of(found.pid) == USER
        finally:
            os.killpg(process.pid, 9)


def _resolved(target: str) -> list[engines.Container]:
    try:
        return [engines.resolve(target)]
    except CntrError:
        return []


def test_a_set_uid_program_that_a_user_has_started_is_not_the_users(tmp_path):
    program = tmp_path / "sleep"
    shutil.copy("/bin/sleep", program)
    program.chmod(0o4755)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o1000:
            break  # /tmp is not changed
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    with subprocess.Popen([*AS_USER, str(program), "300"]) as process:
        try:
            while pathlib.Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
                time.sleep(0.001)
            assert evidence.uid_of(process.pid) == -1
            assert not evidence.belongs_to(process.pid, USER)
        finally:
            process.kill()


# --- a user's name against root's -------------------------------------------------------------------------------------


def test_roots_container_goes_before_a_users_of_that_name_or_of_that_beginning_of_an_id(home, tmp_path, monkeypatch):
    root_id = "abc123" + "7" * 58
    monkeypatch.setenv("CNTR_CONTAINERD_ROOT", str(tmp_path))
    task = tmp_path / "io.containerd.runtime.v2.task/default" / root_id
    task.mkdir(parents=True)
    code = CONTAINER.replace('"unshare", "-Ur", ', "")
    with (
        subprocess.Popen([sys.executable, "-c", code, root_id], stdout=subprocess.PIPE, text=True) as roots,
        users_process(CONTAINER) as theirs,
    ):
        assert roots.stdout
        pid = int(roots.stdout.readline())
        (task / "init.pid").write_text(str(pid))
        start = procfs.start_time(procfs.read(f"/proc/{theirs.said}/stat"))
        for name in (root_id, root_id[:12], root_id[:5]):
            write(home / "crun" / name / "status", {"pid": int(theirs.said), "process-start-time": start})
            assert engines.resolve(name).pid == pid, name
        os.kill(pid, 9)


@contextlib.contextmanager
def hanging(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Root's Docker daemon accepts and never answers."""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(f"{path}/docker.sock")
        os.chmod(f"{path}/docker.sock", 0o600)
        daemon.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}/docker.sock")
        yield


def test_a_hanging_daemon_of_roots_hides_no_users_container(home, tmp_path, monkeypatch):
    """And none of theirs is taken for one that the daemon may have, until the user's engine is named."""
    with users_process(CONTAINER) as process, hanging(tmp_path, monkeypatch):
        pid = int(process.said)
        start = procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
        write(home / "crun" / NAME / "status", {"pid": pid, "process-start-time": start})
        assert pid in [found.pid for found in listed()]
        with pytest.raises(CntrError, match=f"docker did not answer; crun:{NAME}, of .* is called so") as refused:
            engines.resolve(NAME)
        assert f"or crun:{NAME} if that is the one" in refused.value.hint
        assert (engines.resolve(f"crun:{NAME}").pid, engines.resolve(f"crun:{NAME}").owner) == (pid, USER)


def test_a_users_daemon_does_not_answer_for_one_of_roots_that_hangs(home, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "NAMED_SECONDS", 1.0)
    with (
        users_process(CONTAINER, "-c", ID) as process,
        users_process(DAEMON, f"{home}/docker.sock", f"{home}/answer"),
        hanging(tmp_path, monkeypatch),
    ):
        write(home / "answer", inspected(int(process.said)))
        places = {0: f"{tmp_path}/docker.sock", USER: f"{home}/docker.sock"}  # in default places, not by a variable
        monkeypatch.setattr(docker, "endpoints", lambda: [(places[os.geteuid()], os.geteuid())])
        with pytest.raises(CntrError, match=f"{NAME}: docker did not answer; docker:{NAME}, of ") as refused:
            engines.resolve(f"docker:{NAME}")
        assert f"or pid:{process.said} if that is the one" in refused.value.hint


# --- what a user wrote costs little -----------------------------------------------------------------------------------

HANG = (
    "import socket, sys, time\ns = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
    "c = [s.accept() for _ in range(9)]; time.sleep(300)"
)
STREAM = (
    "import socket, sys\ns = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
    "while True:\n c = s.accept()[0]\n try:\n  c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n[')\n  while True: c.sendall(b'[],' * 20000)\n"
    " except OSError: pass"
)
HUGE = "[" + "[],[],{}," * 2_000_000 + "[]]"  # 18 MB that become 400
CONF = '[storage]\ngraphroot = "{0}/graph"\nrunroot = "{0}/run"\n'


def _fifo(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in (path.parent, *path.parent.parents):
        if str(parent).startswith(f"/run/user/{USER}"):
            own(parent)
    os.mkfifo(path)
    own(path)


def test_what_a_user_wrote_takes_neither_memory_nor_time(home, monkeypatch):
    """Each of these once hung or took gigabytes; root's own containers are still listed."""
    write(home / "crun/huge/status", HUGE)
    write(home / "crun/deep/status", "[" * 3_000_000)
    _fifo(home / "crun/fifo/status")
    write(home / "runc/x/y", "")
    (home / "runc/link").mkdir()
    own(home / "runc/link")
    (home / "runc/link/state.json").symlink_to("/dev/zero")
    conf = write(home / "conf", CONF.format(home))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    write(home / "graph/overlay-containers/containers.json", HUGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with users_process(HANG, f"{home}/docker.sock"):
        begun = time.monotonic()
        _, answers = listing.running(1.5)
        assert time.monotonic() - begun < 4, "1.5 s, on a loaded machine"
        assert any(answer.owner == USER and answer.refused for answer in answers), (
            "the one that did not answer is named"
        )
        begun = time.monotonic()
        nobody_is_called("no-such-container")
        assert time.monotonic() - begun < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def test_a_users_daemon_that_talks_for_ever(home):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with users_process(STREAM, f"{home}/docker.sock"):
        begun = time.monotonic()
        listing.running(1.5)
        assert time.monotonic() - begun < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def test_a_users_database(home, monkeypatch):
    """With a view that never ends, and one that produces a huge text."""
    conf = write(home / "conf", CONF.format(home))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    write(home / "graph/none", "")
    with sqlite3.connect(home / "graph/db.sql") as database:
        database.execute(
            "CREATE VIEW PodConfig AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
            "SELECT x AS ID, printf('%.*c', 60000000, 'x') AS Name FROM n"
        )
        database.execute("CREATE TABLE PodState (ID, JSON)")
        database.execute("CREATE TABLE ContainerConfig (ID, Name, PodID)")
        database.execute("INSERT INTO PodState VALUES ('-1', '{}')")
        database.execute("INSERT INTO ContainerConfig VALUES ('-1', '-1', '-1')")
    database.close()
    own(home / "graph/db.sql")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    nobody_is_called("no-such-pod")
    assert time.monotonic() - begun < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def test_nothing_is_left_of_the_users_processes(home):
    write(home / "crun/deep/status", "[" * 3_000_000)
    before = evidence.children(os.getpid())  # rigs' daemons
    with users_process(HANG, f"{home}/docker.sock") as process:
        listing.running(0.5)
        assert set(evidence.children(os.getpid())) - set(before) == {process.pid}


# --- whose is a path --------------------------------------------------------------------------------------------------


def test_whose_a_path_is(tmp_path):
    trust.forget()
    file = tmp_path / "a/b"
    file.parent.mkdir()
    file.write_text("")
    assert trust.owner(str(file)) == 0, "/tmp is sticky"

    def now() -> int:
        trust.forget()
        return trust.owner(str(file))

    for mode, owner in ((0o775, 0), (0o757, trust.ANYBODY), (0o1777, 0), (0o755, 0)):
        file.parent.chmod(mode)
        assert now() == owner, oct(mode)
    os.chown(file.parent, 0, USER)
    file.parent.chmod(0o775)
    assert now() == trust.ANYBODY, "a group other than root's may write"
    file.parent.chmod(0o755)
    os.chown(file.parent, USER, USER)
    assert now() == USER
    os.chown(file, USER + 1, 0)
    assert now() == USER, "the owner of the directory decides"
    os.chown(file.parent, 0, 0)
    assert now() == USER + 1
    file.unlink()
    (tmp_path / "theirs").mkdir()
    own(tmp_path / "theirs")
    (tmp_path / "theirs/file").write_text("")
    file.symlink_to("../theirs/file")
    assert now() == USER
    file.unlink()
    file.symlink_to("b")
    with pytest.raises(OSError, match=r"symbolic links"):
        now()


def test_a_file_system_of_a_users_that_never_answers(home, monkeypatch):
    """It is mounted where root looks for traces of engines. stat(2) would hang; the name is enough."""
    write(home / "crun/web/status", "{}")
    looked = []
    monkeypatch.setattr(os.path, "exists", lambda path, real=os.path.exists: looked.append(str(path)) or real(path))
    monkeypatch.setattr(
        os, "stat", lambda path, *rest, real=os.stat, **more: looked.append(str(path)) or real(path, *rest, **more)
    )
    listing.running(0.5)
    assert [path for path in looked if path.startswith(f"{home}/")] == []
    lines = f"1 2 0:3 / {home} rw - fuse.slow x rw,allow_other\n3 2 0:4 / /run/user/1 rw - tmpfs tmpfs rw\n"
    mounts = procfs.mountinfo(lines)
    assert not trust.answers(str(home), mounts)
    assert trust.answers("/run/user/1", mounts)
    assert trust.answers("/run/user/2", mounts)


def test_a_command_line_is_its_users_word():
    """A process named like root's daemon is not the daemon: root's goes first, and messages say whose each is."""
    from cntr.audit import policy

    name = f"daemon{os.getpid()}: master"
    call = f"import os; print('up', flush=True); os.execv({shutil.which('sleep')!r}, [{name!r}, '100'])"
    with users_process(call) as mine:
        wait_until(lambda: procfs.read(f"/proc/{mine.pid}/cmdline").startswith(name))
        found = engines.resolve(f"command:{name}")
        assert (found.pid, found.owner) == (mine.pid, USER)
        assert policy._names("", found)[0] == f"{USER}/command:{name}", "otherwise `exec -u 0` would make them root"
        with subprocess.Popen([name, "100"], executable=shutil.which("sleep")) as roots:
            found = engines.resolve(f"command:{name}")
            assert (found.pid, found.owner) == (roots.pid, 0)
            roots.kill()


def test_an_engines_command_of_roots_has_no_settings_of_a_users(home, tmp_path, monkeypatch):
    """`sudo -E`, or `su`, keeps variables. containers.conf(5) names a program that podman runs (``conmon_path``), docker's settings
    name plugins, and a socket answers for root's engine.
    """
    theirs, roots = write(home / "conf", ""), tmp_path / "conf"
    roots.write_text("")
    (home / "link").symlink_to(roots)
    names = "CONTAINERS_CONF DOCKER_CONFIG HOME CONTAINER_HOST CONTAINERD_ADDRESS XDG_CONFIG_HOME DOCKER_HOST".split()
    for name in names:
        scheme = "unix://" if name.endswith("HOST") else ""
        for path, kept in ((theirs, False), (home / "link", False), ("conf", False), (roots, True)):
            monkeypatch.setenv(name, f"{scheme}{path}")
            text = commands.output(time.monotonic() + 10, "env").splitlines()
            assert (f"{name}={scheme}{path}" in text) == kept, (name, path)
    monkeypatch.setenv("CONTAINER_HOST", "ssh://elsewhere/run/podman.sock")
    for name in ("LD_PRELOAD_X", "DBUS_SYSTEM_BUS_ADDRESS", "PODMAN_IGNORE_CGROUPSV1_WARNING", "SYSTEMD_PAGER"):
        monkeypatch.setenv(name, f"{theirs}")
    monkeypatch.setenv("HOME", str(theirs))
    found = dict(row.partition("=")[::2] for row in commands.output(time.monotonic() + 10, "env").splitlines())
    assert set(found) <= {*commands.PLACES, *commands.WORDS, "PATH", "LC_ALL", "TERM"} | {
        key for key in found if key.startswith("CNTR_")
    }
    assert "CONTAINER_HOST" not in found
    assert found["HOME"] == "/root"
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(theirs))
    with pytest.raises(CntrError, match="can write there"):
        containerd_store.own_socket()
