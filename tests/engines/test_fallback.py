"""The engines' own commands as a last resort: real ones that know what is in no file, and hostile ones."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from cntr import engines
from cntr.engines import commands, fallback, listing
from cntr.errors import TargetNotFound
from testkit.waiting import wait_until

# --- real commands ----------------------------------------------------------------------------------------------------


def test_a_containerd_whose_state_is_elsewhere(containerd, monkeypatch):
    """Only its socket's address is known, by ctr's own variable."""
    with containerd.container() as slim:
        monkeypatch.setenv("CONTAINERD_ADDRESS", containerd.socket)
        for target in (slim.name, f"containerd:{slim.name}", f"default/{slim.name}"):
            found = engines.resolve(target)
            assert (found.engine, found.pid) == ("containerd", slim.pid)
            assert found.start_time
        with pytest.raises(TargetNotFound, match="containerd"):
            engines.resolve(f"{slim.name}x")
    with pytest.raises(TargetNotFound):
        engines.resolve(slim.name)


@pytest.fixture
def over_tcp(docker):
    """tcp://127.0.0.1:PORT, connected to the rig's socket."""

    def pump(source, sink):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as daemon:
                daemon.connect(docker.socket)
                back = threading.Thread(target=pump, args=(daemon, client))
                back.start()
                pump(client, daemon)
                back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("way", ["variable", "context"])
def test_a_docker_behind_local_tcp(docker, over_tcp, monkeypatch, tmp_path, way):
    with docker.container() as slim:
        if way == "variable":
            monkeypatch.setenv("DOCKER_HOST", over_tcp)
        else:
            monkeypatch.delenv("DOCKER_HOST", raising=False)
            monkeypatch.setenv("HOME", str(tmp_path))
            for command in (["create", "near", "--docker", f"host={over_tcp}"], ["use", "near"]):
                subprocess.run(["docker", "context", *command], check=True, capture_output=True)
        for target in (slim.name, f"docker:{slim.name}", slim.id[:12]):
            found = engines.resolve(target)
            assert (found.engine, found.pid, found.id) == ("docker", slim.pid, slim.id)
        with pytest.raises(TargetNotFound, match=r"only the docker command can ask there"):
            engines.resolve(f"docker:{slim.name}x")


def test_a_socket_that_only_a_docker_context_names_needs_no_command(docker, monkeypatch, tmp_path):
    """A bare name is enough too: the context is a trace of Docker."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(fallback, "CLIS", ())
    for command in (["create", "near", "--docker", f"host=unix://{docker.socket}"], ["use", "near"]):
        subprocess.run(["docker", "context", *command], check=True, capture_output=True)
    with docker.container() as slim:
        assert engines.resolve(slim.name).pid == slim.pid


def test_a_container_that_was_renamed_in_a_store_elsewhere(podman, monkeypatch):
    """The monitor's arguments have the old name. Only Podman's own settings name the store."""
    with podman.container() as slim:
        monkeypatch.delenv("CONTAINERS_STORAGE_CONF", raising=False)
        podman.command("rename", slim.name, f"{slim.name}-now")
        assert engines.resolve(slim.name).pid == slim.pid, "by the monitor's arguments"
        config = podman.workspace.path + "/wrapper"
        os.makedirs(config, exist_ok=True)
        script = f'#!/bin/sh\nCONTAINERS_STORAGE_CONF={podman.workspace.path}/storage.conf exec /usr/bin/podman "$@"\n'
        with roots_directory() as directory:
            put(directory, "podman", script)
            monkeypatch.setattr(commands, "PATH", (directory,))
            assert engines.resolve(f"{slim.name}-now").pid == slim.pid
        podman.command("rename", f"{slim.name}-now", slim.name)


def test_an_lxc_path_too_long_for_a_sockets_name(lxc, monkeypatch):
    """Its socket's name is a hash; the monitor's title has the path."""
    deep = f"{lxc.path}/{'d' * 100}"
    os.mkdir(deep)
    monkeypatch.setattr(lxc, "path", deep)
    with lxc.container() as slim:
        assert f"{deep}/{slim.name}" not in pathlib.Path("/proc/net/unix").read_text()
        assert engines.resolve(slim.name).pid == engines.resolve(f"lxc:{slim.name}").pid == slim.pid
        assert slim.pid in [found.pid for found in listing.running()[0]]


def test_crictl(k8s, monkeypatch, directory):
    """crictl is not in Debian; a script prints the same about a real pod of containerd."""
    with k8s.container() as slim:
        monkeypatch.delenv("CNTR_CONTAINERD_ROOT", raising=False)
        namespace, pod, container = slim.name.split("/")
        labels = {"pod.namespace": namespace, "pod.name": pod, "container.name": container}
        row = {
            **{"id": slim.id, "image": {"image": "sha256:1", "userSpecifiedImage": "localhost/slim:1"}},
            "labels": {f"io.kubernetes.{key}": value for key, value in labels.items()},
        }
        answers = {"ps": {"containers": [row]}, "inspect": {"status": {"id": slim.id}, "info": {"pid": slim.pid}}}
        cases = "\n".join(f"{word}) echo '{json.dumps(answer)}';;" for word, answer in answers.items())
        put(directory, "crictl", f"#!/bin/sh\ncase $1 in\n{cases}\nesac\n")
        for target in (f"k8s:{slim.name}", f"k8s:{pod}", f"k8s:{slim.id}", slim.name):
            found = engines.resolve(target)
            assert (found.engine, found.name, found.pid) == ("k8s", slim.name, slim.pid)
            assert found.image == "localhost/slim:1"


# --- hostile commands -------------------------------------------------------------------------------------------------


class roots_directory(tempfile.TemporaryDirectory):
    """A directory whose parents all belong to root, unlike /tmp."""

    def __init__(self):
        super().__init__(prefix="cntr-test-", dir=os.path.expanduser("~"))


def put(directory: str, name: str, script: str) -> pathlib.Path:
    path = pathlib.Path(directory, name)
    path.write_text(script)
    path.chmod(0o755)
    return path


@pytest.fixture
def directory(monkeypatch):
    """The only directory in which commands are searched."""
    with roots_directory() as directory:
        monkeypatch.setattr(commands, "PATH", (directory, "/usr/bin", "/bin"))
        yield directory


@pytest.fixture
def always(monkeypatch):
    """Podman's and containerd's commands are run even if nothing of theirs is running."""
    rows = [fallback.EngineCommand(row.engine, row.program, lambda: True, row.talk) for row in fallback.CLIS]
    monkeypatch.setattr(fallback, "CLIS", [row for row in rows if row.engine in ("podman", "containerd")])


def refusal(name: str = "no-such-container") -> str:
    begun = time.monotonic()
    with pytest.raises(TargetNotFound) as caught:
        engines.resolve(name)
    assert time.monotonic() - begun < 1.2, "0.8 s, on a loaded machine"
    return caught.value.message


def processes(mark: str) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return [line for line in found if mark in line]


def test_one_that_hangs_is_killed_with_all_that_it_started(directory, always):
    put(directory, "podman", "#!/bin/sh\nsleep 98765 &\nsleep 98765\n")
    put(directory, "ctr", '#!/bin/sh\n[ "$1" = namespaces ] && echo default || sleep 98765\n')
    message = refusal()
    assert "podman (the command podman did not answer in time)" in message
    deadline = time.monotonic() + 2
    while processes("98765") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes("98765") == []


def test_one_that_hangs_does_not_outlive_a_cntr_that_is_killed(directory):
    if not commands.trusted("setpriv").endswith("/setpriv"):
        pytest.skip("not installed: util-linux (apt-get install)")
    program = put(directory, "podman", "#!/bin/sh\nexec sleep 98764\n")
    hanging = f"import time; from cntr.engines import commands; commands.Invocation([{str(program)!r}]); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hanging], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        wait_until(lambda: processes("98764"))
        process.kill()
    wait_until(lambda: not processes("98764"))


def test_one_that_hangs_does_not_keep_the_others_from_answering(directory, always, containerd, monkeypatch):
    put(directory, "podman", "#!/bin/sh\nexec sleep 98765\n")
    with containerd.container() as slim:
        monkeypatch.setenv("CONTAINERD_ADDRESS", containerd.socket)
        assert engines.resolve(slim.name).pid == slim.pid
    assert processes("98765") == []


@pytest.mark.parametrize(
    "answer",
    [
        *("", "\0\1\2", "{", "[1]", "null", '{"Id": 1}', '[{"Id": "x", "Names": 5, "Pid": 1}]', "x y\nz"),
        '[{"Id": "ab", "Names": ["no-such-container"], "Pid": Infinity, "Image": ""}]',
        *('[{"Id": "\x1b]0;x\x07", "Names": ["no-such-container"], "Pid": 1, "Image": ""}]', "[" * 10000),
    ],
    ids=lambda answer: ascii(answer)[:20],
)
def test_garbage_finds_nothing_and_is_never_shown(directory, always, answer):
    path = pathlib.Path(directory, "answer")
    path.write_text(answer)
    for program in ("podman", "ctr"):
        put(directory, program, f"#!/bin/sh\nprintf '\\033[31mRAW' >&2\ncat {path}\n")
    message = refusal()
    assert message.isprintable()
    assert "RAW" not in message


def test_one_that_never_stops_talking_is_cut_off(directory, always, monkeypatch):
    monkeypatch.setattr(commands, "LIMIT", 1 << 20)
    put(directory, "podman", "#!/bin/sh\nexec yes 98765\n")
    refusal()
    assert processes("98765") == []


def test_it_may_not_name_a_process_that_is_not_the_containers(directory, always):
    row = {"Id": "4f" * 32, "Names": ["no-such-container"], "Pid": os.getpid(), "Image": "x", "IsInfra": False}
    put(directory, "podman", f"#!/bin/sh\necho '{json.dumps([row])}'\n")
    put(
        directory,
        "ctr",
        f'#!/bin/sh\n[ "$1" = namespaces ] && echo a || echo "T\nno-such-container {os.getpid()} RUNNING"\n',
    )
    refusal()


def test_it_sees_no_name_no_terminal_and_no_open_file(directory, always):
    put(directory, "podman", f'#!/bin/sh\n{{ echo "$@"; ls -l /proc/self/fd; cat; tty; }} >{directory}/seen\n')
    refusal("--root=/owned")
    seen = pathlib.Path(directory, "seen").read_text()
    assert "owned" not in seen
    assert "0 -> /dev/null" in seen
    assert "2 -> /dev/null" in seen
    own = {
        fd
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(int(fd))
    }
    passed = {line.split()[-3] for line in seen.splitlines() if "->" in line} - own
    assert passed <= {"0", "1", "2", "3", "10"}, "3 is that of ls, 10 the shell's"
    assert "not a tty" in seen


def test_only_what_is_roots_is_run(directory, always, tmp_path, monkeypatch):
    script = "#!/bin/sh\necho >>$(dirname $0)/ran\n"
    theirs = put(directory, "podman", script)
    os.chown(theirs, 4242, 4242)
    assert commands.trusted("podman") != str(theirs)
    os.chown(theirs, 0, 0)
    assert commands.trusted("podman") == str(theirs)
    for mode in (0o775, 0o757, 0o644):
        theirs.chmod(mode)
        assert commands.trusted("podman") != str(theirs), oct(mode)
    theirs.chmod(0o755)
    os.chmod(directory, 0o777)
    assert commands.trusted("podman") != str(theirs), "anybody could have created it"
    os.chmod(directory, 0o755)
    theirs.unlink()
    theirs.symlink_to(put(str(tmp_path), "podman", script))
    assert commands.trusted("podman") != str(theirs), "a link out of root's directories"
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal()
    assert not (tmp_path / "ran").exists(), "$PATH is not used"


def test_no_command_is_run_where_the_files_explain_all(directory, runc, monkeypatch):
    """Nor if nothing is running: an unknown name starts no process."""
    for row in fallback.CLIS:
        put(directory, row.program, f"#!/bin/sh\ntouch {directory}/ran-$(basename $0)\n")
    wanted = {row.program for row in fallback.CLIS if row.needed()}
    refusal()
    assert {path.name.removeprefix("ran-") for path in pathlib.Path(directory).glob("ran-*")} <= wanted
    with runc.container() as slim:
        slim.use(monkeypatch)
        for path in pathlib.Path(directory).glob("ran-*"):
            path.unlink()
        assert engines.resolve(slim.name).pid == slim.pid
        assert list(pathlib.Path(directory).glob("ran-*")) == [], "the files know this name"
