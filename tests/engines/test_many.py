"""500 containers are listed in 0.3 s of processor time, whatever the engine."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time

import pytest

from cntr import engines
from cntr.engines import listing
from testkit.engines.crowd import LAYOUTS, MANY, config, processes

pytestmark = pytest.mark.slow
SECONDS = 3.0  # detects quadratic growth; no measurement


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    with processes(tmp_path_factory.mktemp("many")) as crowd:
        yield crowd


class Api(http.server.BaseHTTPRequestHandler):
    """Answers two requests of Docker's API."""

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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_500_containers_are_listed_in_time(tmp_path, monkeypatch, crowd, layout):
    listed(monkeypatch, layout(tmp_path, crowd), crowd, SECONDS)


def test_500_of_dockers_whose_pids_only_the_api_tells(monkeypatch, crowd, api):
    """The worst case: one request for each. The engine runs in its own thread, whose time is measured."""
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
