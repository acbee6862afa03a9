"""``kubectl cntr`` with a real kubectl, the tests' API server, and a container of a real CRI pod on this machine as the
node.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from testkit.engines import rigs
from tests.engines.kubeapi import Server
from tests.nest.tty import Terminal

REPOSITORY = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def kubectl() -> str:
    path = shutil.which("kubectl")
    if not path:
        pytest.skip("not installed: kubectl (apt-get install kubernetes-client)")
    shown = subprocess.run(
        [path, "version", "--client", "-o", "json"], capture_output=True, text=True, check=False
    ).stdout
    minor = re.search(r'"minor": "(\d+)', shown)
    if not minor or int(minor[1]) < 31:
        pytest.skip("kubectl before 1.31 speaks SPDY, which the tests' API server does not")
    return path


class Client:
    """kubectl with the plugin in PATH, configured for the server."""

    def __init__(self, place: pathlib.Path, server: Server) -> None:
        self.name = ""
        self.server = server
        plugin = place / "bin/kubectl-cntr"
        plugin.parent.mkdir()
        plugin.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/bin/kubectl-cntr "$@"\n')
        plugin.chmod(0o755)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        cluster = {"clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}], "current-context": "x",
                   "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "prod"}}]}  # fmt: skip
        (place / "config").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **cluster}))
        self.environment = {**os.environ, "PATH": f"{plugin.parent}:{os.environ['PATH']}", "KUBECONFIG": f"{place}/config",
                            "PYTHONPATH": str(REPOSITORY), "HOME": str(place)}  # fmt: skip

    def run(self, *words: str, input: bytes = b"") -> subprocess.CompletedProcess:
        return subprocess.run(
            ["kubectl", "cntr", *words], env=self.environment, input=input, capture_output=True, timeout=60, check=False
        )

    def said(self, *words: str) -> tuple[str, str]:
        done = self.run(*words)
        found = re.fullmatch(r"cntr: ([^\n]+)\nhint: ([^\n]+)\n", done.stderr.decode())
        assert found, done
        assert done.returncode == 125
        return found[1], found[2]


@pytest.fixture
def client(kubectl, tmp_path, request, monkeypatch):
    rig = rigs.open_rig(request, "k8s")
    monkeypatch.setenv("CNTR_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    with rig.container("busybox") as container:
        server = Server({**os.environ, **rig.settings})
        name = container.name.split("/")[1]
        containers = [{"name": "proxy"}, {"name": "app"}]
        meta = {"name": name, "namespace": "prod", "annotations": {"kubectl.kubernetes.io/default-container": "app"}}
        waits = {"name": "waits", "namespace": "prod"}
        for metadata, node, phase in ((meta, {"nodeName": "n1"}, "Running"), (waits, {}, "Pending")):
            spec = {"containers": containers, **node}
            server.add(
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": phase}}
            )
        found = Client(tmp_path, server)
        found.name = name
        yield found
        server.shutdown()
        server.server_close()
        assert set(server.pods) == {name, "waits"}, "a toolbox was left"
        assert not list(pathlib.Path("/tmp").glob("cntr-*.pyz.mark"))
        for file in pathlib.Path("/tmp").glob("cntr-*.pyz"):  # the pods' own, which is this machine's here
            if any(file.stem == made["metadata"]["name"] for made in server.made):
                file.unlink()


def test_a_session_beside_a_pods_container(client):
    everything = bytes(range(256)) * 500
    done = client.run(client.name, "--", "cat", input=everything)
    assert (done.stderr, done.returncode, done.stdout == everything) == (b"", 0, True)
    (toolbox,) = client.server.made
    spec = toolbox["spec"]
    assert (spec["nodeName"], spec["hostPID"], spec["containers"][0]["securityContext"]) == (
        "n1",
        True,
        {"privileged": True},
    )
    assert spec["activeDeadlineSeconds"] == 12 * 3600
    done = client.run(
        f"pod/{client.name}",
        "-c",
        "app",
        "-e",
        "A=b c",
        "--",
        "sh",
        "-c",
        'cat /var/lib/cntr/etc/motto; echo "$A"; exit 7',
    )
    assert (done.stdout, done.returncode) == (b"slim\nb c\n", 7)
    with Terminal(
        "kubectl", "cntr", client.name, "--", "sh", "-c", "tty; read a; echo got $a", env=client.environment
    ) as terminal:
        terminal.wait_for("/dev/pts/")
        terminal.type("x\n")
        terminal.wait_for("got x")
        assert terminal.process.wait(20) == 0


def test_the_impossible_is_reported(client):
    assert client.said("no-such-pod")[0].startswith(
        'kubectl get: Error from server (NotFound): pods "no-such-pod" not found'
    )
    assert client.said("waits")[0] == "prod/waits: it is on no node yet: Pending"
    message, hint = client.said(client.name, "-c", "none")
    assert (message, hint) == (f"prod/{client.name} has no container none", "it has proxy, app")
    client.server.broken = "ErrImagePull"
    assert client.said(client.name)[0] == "the toolbox pod does not run: ErrImagePull: no such image"
    assert client.run("--help").stdout.startswith(b"Usage: kubectl cntr ")
