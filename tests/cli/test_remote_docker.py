"""Containers on Docker's ssh:// hosts and contexts are found as by ``--host``; with a real daemon, docker, sshd and
ssh.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

import pytest

from cntr.cli import main
from testkit.engines.rigs_cli import Docker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def docker(far):
    """A daemon whose socket is in the usual place on the far machine, and not on this one."""
    rig = Docker()
    try:
        script = f"touch /run/docker.sock && mount --bind {rig.socket} /run/docker.sock"
        subprocess.run(["nsenter", "-t", str(far.process.pid), "-m", "sh", "-c", script], check=True)
        with rig.container("busybox", name="web-there"):
            yield rig
    finally:
        rig.stop()


@pytest.fixture(params=["host", "context"])
def run(request, far, docker, tmp_path):
    """Run cntr as a user of Docker there."""
    where = "ssh://worker@far/run/docker.sock"
    settings = {"DOCKER_HOST": where}
    if request.param == "context":
        place = tmp_path / "contexts/meta" / hashlib.sha256(b"there").hexdigest()
        place.mkdir(parents=True)
        (place / "meta.json").write_text(json.dumps({"Name": "there", "Endpoints": {"docker": {"Host": where}}}))
        (tmp_path / "config.json").write_text('{"currentContext": "there"}')
        settings = {"DOCKER_CONFIG": str(tmp_path)}

    def run(*words: str, **more) -> subprocess.CompletedProcess:
        environment = {**far.environment, **settings}
        return subprocess.run(
            far.command(*words), env=environment, capture_output=True, text=True, timeout=60, check=False, **more
        )

    return run


def test_what_runs_there_is_found(run, tmp_path):
    done = run("attach", "web-there", "--", "cat", "/var/lib/cntr/etc/motto")
    assert (done.returncode, done.stdout) == (0, "slim\n"), done.stderr
    assert done.stderr.startswith("cntr: note: web-there is looked up on ssh://worker@far, according to DOCKER_HOST")
    assert run("exec", "docker:web-there", "--", "sh", "-c", "exit 7").returncode == 7
    done = run("cp", "web-there:/etc/motto", str(tmp_path / "motto"))
    assert (done.returncode, (tmp_path / "motto").read_text()) == (0, "slim\n"), done.stderr
    rows = [row for row in json.loads(run("ps", "--json").stdout) if row["host"]]
    assert [(row["host"], row["engine"], row["name"]) for row in rows] == [("ssh://worker@far", "docker", "web-there")]
    assert "docker:web-there" in run("inspect", "web-there").stdout


def test_an_unknown_name_is_reported_with_the_engines_asked(run):
    done = run("attach", "no-such")
    assert done.returncode == 125
    note, error, hint = done.stderr.splitlines()
    assert "no-such is looked up on ssh://worker@far" in note
    assert (error[:14], hint[:6]) == ("cntr: no-such:", "hint: ")
    done = run("attach", "podman:no-such")  # on this machine, as requested
    assert (done.returncode, "looked up on" in done.stderr) == (125, False)


def test_a_host_that_is_none_is_not_given_to_ssh(monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", "ssh://-oProxyCommand=touch")
    assert main.run(["attach", "docker:web"]) == 125
    assert "not a host" in capsys.readouterr().err
