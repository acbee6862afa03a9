"""Podman's pods by name: of version 5 from its database, of older ones by the podman command."""

from __future__ import annotations

import os
import pathlib
import sqlite3
import time

import pytest

from cntr import engines
from cntr.engines import pods
from cntr.errors import AmbiguousTarget, TargetNotFound
from testkit.engines import rigs
from testkit.engines.workspaces import unique
from tests.engines.test_together import cntr

RIGS = ("podman", "podman_newer")


@pytest.fixture(params=RIGS)
def rig(request, monkeypatch):
    rig = rigs.open_rig(request, request.param)
    for name, value in rig.settings.items():
        monkeypatch.setenv(name, value)
    return rig


@pytest.mark.parametrize("infra", [True, False])
def test_a_pod_with_one_container_is_that_container(rig, infra):
    app = unique("app")
    with rig.pod(app, infra=infra) as (pod, id):
        pid = rig.pid(app)
        for target in (f"podman:{pod}", pod, f"podman:{pod}/{app}", f"{pod}/{app}", f"podman:{id}", id[:12]):
            found = engines.resolve(target)
            assert (found.engine, found.pid, found.name) == ("podman", pid, f"{pod}/{app}"), target
        assert engines.resolve(f"podman:{app}").pid == pid, "its own name still works"
        environment = {**os.environ, **rig.settings}
        for command in (
            ["attach", pod, "--", "cat", "/var/lib/cntr/etc/motto"],
            ["exec", f"{pod}/{app}", "cat", "/etc/motto"],
        ):
            assert cntr(environment, *command) == "slim\n"
        with pytest.raises(TargetNotFound):
            engines.resolve(f"podman:{pod}/{app}x")
        with pytest.raises(TargetNotFound):
            engines.resolve(f"podman:{pod[:-1]}")


def test_a_pod_with_two_containers_lists_them(rig):
    web, log = unique("web"), unique("log")
    with rig.pod(web, log, infra=True) as (pod, _):
        with pytest.raises(AmbiguousTarget) as caught:
            engines.resolve(f"podman:{pod}")
        for name in (web, log):
            assert f"podman:{pod}/{name} (pid {rig.pid(name)}" in caught.value.message
            assert engines.resolve(f"podman:{pod}/{name}").pid == rig.pid(name)
        assert "infra" not in caught.value.message


def test_the_error_recognises_a_stopped_pod(podman_newer, monkeypatch):
    app = unique("app")
    with podman_newer.pod(app, infra=True) as (pod, _), monkeypatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", podman_newer.settings["CONTAINERS_STORAGE_CONF"])
        podman_newer.command("pod", "stop", "-t", "0", pod)
        with pytest.raises(TargetNotFound, match=f"podman has the pod {pod}, but it is not running"):
            engines.resolve(f"podman:{pod}")


def test_a_newer_podmans_store_is_not_shown_to_an_older_podman(podman_newer, monkeypatch):
    """It would create its own kind of database there, which the newer one would then use, losing its containers."""
    with podman_newer.container() as container:
        container.use(monkeypatch)
        with pytest.raises(TargetNotFound):
            engines.resolve(f"podman:{container.name}x")
        graph = pathlib.Path(podman_newer.workspace.path, "graph")
        assert (graph / "db.sql").exists()
        assert list(graph.rglob("bolt_state.db")) == []
        assert podman_newer.pid(container.name) == container.pid, "Podman itself still knows it"


@pytest.mark.parametrize("kind", ["endless", "garbage", "short", "other"])
def test_a_users_database_is_read_as_hostile(tmp_path, monkeypatch, kind):
    """Root reads all users' databases. An endless query ends at the deadline; a file that is no database is ignored."""
    file = tmp_path / "graph/db.sql"
    file.parent.mkdir()
    (tmp_path / "conf").write_text(f'[storage]\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    if kind in ("endless", "other"):
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS ID, x AS Name FROM n"
        with sqlite3.connect(file) as database:
            database.execute(
                f"CREATE VIEW PodConfig AS {endless}" if kind == "endless" else "CREATE TABLE PodConfig (x)"
            )
            database.execute("CREATE TABLE PodState (ID, JSON)")
            database.execute("CREATE TABLE ContainerConfig (ID, Name, PodID)")
            database.execute("INSERT INTO PodState VALUES ('-1', '{}')")
            database.execute("INSERT INTO ContainerConfig VALUES ('-1', '-1', '-1')")
        database.close()
    else:
        file.write_bytes(b"x" * (100_000 if kind == "garbage" else 3))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "conf"))
    begun = time.monotonic()
    assert pods.find("web", begun + 0.3) == []
    assert time.monotonic() - begun < 1
