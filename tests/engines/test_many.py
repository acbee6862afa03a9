"""500 containers are listed in 0.3 s of processor time, whatever the engine that knows them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cntr import engines
from cntr.engines import listing
from cntr.linux import procfs

MANY = 500
pytestmark = pytest.mark.slow
SECONDS = 3.0  # a bound on what grows with the square, not a figure
# One process starts them all, with their ids among its arguments, as each one's own monitor would have its.
PARENT = """
import os, sys, time
for id in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        os.execvp(sys.argv[1], [sys.argv[1]])
    print(pid, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def processes(directory: pathlib.Path) -> Iterator[dict[str, int]]:
    """{id: pid} of 500 processes; their program is put into the DIRECTORY."""
    from tests.engines import tinyelf

    program = directory / "app"
    program.write_bytes(tinyelf.program())
    program.chmod(0o755)
    ids = [os.urandom(32).hex() for _ in range(MANY)]
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for first in range(0, MANY, 50):  # of a longer command line not all is read
            command = [sys.executable, "-c", PARENT, str(program), *ids[first : first + 50]]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True)
            stack.enter_context(process)
            stack.callback(os.killpg, process.pid, 9)
            assert process.stdout
            found |= {id: int(process.stdout.readline()) for id in ids[first : first + 50]}
        yield found


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    with processes(tmp_path_factory.mktemp("many")) as crowd:
        yield crowd


def config(id: str) -> dict[str, object]:
    """An OCI configuration as large as Docker's and Podman's are."""
    mounts = [
        {"destination": f"/m{n}", "type": "bind", "source": f"/var/lib/x/{id}/{n}", "options": ["rbind"]}
        for n in range(20)
    ]
    names = [f"SCMP_{n}" for n in range(400)]
    return {"mounts": mounts, "seccomp": names, "rootfs": f"/var/lib/x/{id}", "annotations": {"k": "v"}}


def runc_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    for id, pid in crowd.items():
        (root / "runc" / id).mkdir(parents=True)
        start = procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
        record = {"init_process_pid": pid, "init_process_start": start, "config": config(id)}
        (root / "runc" / id / "state.json").write_text(json.dumps(record))
    return {"CNTR_RUNC_ROOT": f"{root}/runc"}


def podman_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    rows = []
    for number, (id, pid) in enumerate(crowd.items()):
        userdata = root / "run/overlay-containers" / id / "userdata"
        userdata.mkdir(parents=True)
        (userdata / "pidfile").write_text(str(pid))
        rows.append({"id": id, "names": [f"web{number}"], "layer": id, "metadata": json.dumps({"image-name": "x:1"})})
    (root / "graph/overlay-containers").mkdir(parents=True)
    (root / "graph/overlay-containers/containers.json").write_text(json.dumps(rows))
    (root / "conf").write_text(f'[storage]\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n')
    return {"CONTAINERS_STORAGE_CONF": f"{root}/conf"}


def k8s_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    for number, (id, pid) in enumerate(crowd.items()):
        task = root / "state/io.containerd.runtime.v2.task/k8s.io" / id
        task.mkdir(parents=True)
        (task / "init.pid").write_text(str(pid))
        names = {"container-type": "container", "sandbox-name": f"web-{number}", "sandbox-namespace": "prod"}
        annotations = {f"io.kubernetes.cri.{key}": value for key, value in (names | {"container-name": "app"}).items()}
        (task / "config.json").write_text(json.dumps(config(id) | {"annotations": annotations}))
    return {"CNTR_CONTAINERD_ROOT": f"{root}/state"}


class Api(http.server.BaseHTTPRequestHandler):
    """The two requests of Docker's API."""

    crowd: dict[str, int] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/containers/json":
            rows = [{"Id": id, "Names": [f"/c{id[:8]}"], "Image": "x", "State": "running"} for id in self.crowd]
            body = json.dumps(rows)
        else:
            id = self.path.split("/")[2]
            state = {"Pid": self.crowd[id], "Paused": False, "Status": "running", "ExitCode": 0}
            body = json.dumps({"Id": id, "Name": f"/c{id[:8]}", "State": state, "Config": config(id) | {"Image": "x"}})
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def api(tmp_path, crowd):
    Api.crowd = crowd
    with socketserver.UnixStreamServer(f"{tmp_path}/d.sock", Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"DOCKER_HOST": f"unix://{tmp_path}/d.sock"}
        server.shutdown()
        thread.join()


def listed(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], crowd: dict[str, int], limit: float) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    times = []
    for _ in range(5):
        begun = time.thread_time()
        found, _ = listing.running(seconds=20)
        times.append(time.thread_time() - begun)
        assert set(crowd.values()) <= {container.pid for container in found}
    print(f"{MANY} containers: {min(times):.3f} s")
    assert min(times) <= limit, times


LAYOUTS = (runc_layout, podman_layout, k8s_layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_500_containers_are_listed_in_time(tmp_path, monkeypatch, crowd, layout):
    listed(monkeypatch, layout(tmp_path, crowd), crowd, SECONDS)


def test_500_of_dockers_whose_pids_only_the_api_tells(monkeypatch, crowd, api):
    """The worst case: a question for each. The engine has a thread of its own, so its own time is measured."""
    from cntr.engines import docker

    for name, value in api.items():
        monkeypatch.setenv(name, value)
    times = []
    for _ in range(3):
        engines.evidence.forget()
        begun = time.thread_time()
        found = docker.containers(time.monotonic() + 20)
        times.append(time.thread_time() - begun)
        assert {container.pid for container in found} == set(crowd.values())
    print(f"{MANY} containers: {min(times):.3f} s")
    assert min(times) <= SECONDS, times
