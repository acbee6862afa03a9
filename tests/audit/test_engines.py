"""Records and the policy with real engines have the container's name, id and image, however the target was named."""

from __future__ import annotations

import json

import pytest

from testkit.engines import rigs
from tests.audit.support import AuditedHost, only
from tests.nest import busybox
from tests.nest.test_exec_inside import INSIDE


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_the_container_is_the_engines_and_a_pid_in_it_is_that_container(request, tmp_path, engine):
    place = AuditedHost(tmp_path / "run")
    place.policy = f"[[allow]]\ntargets = ['{engine}:audit-*']\n"
    rig = rigs.open_rig(request, engine)
    with rig.container(name="audit-1") as one, rig.container() as other, place.journal() as journal:
        image = json.loads(rig.command("inspect", one.name))[0]["Image"]
        for target in (one.name, one.target, one.id[:12], f"pid:{one.pid}"):
            done = place.cntr("attach", target, "--reason", "r", "--", "sh", "-c", f"{INSIDE} -- true", env=one.env)
            assert (done.returncode, done.stderr) == (0, ""), (target, done)
        for target in (other.name, other.id[:12], f"pid:{other.pid}"):
            done = place.cntr("attach", target, "--", "true", env=one.env)
            assert "is not allowed for" in busybox.one_line_and_hint(done)
    inside = [entry for entry in journal.entries if only(entry, "CNTR_EVENT_ACTION") == "exec"]
    assert len(inside) == 8
    for entry in inside[:6]:  # the last name was a pid
        assert only(entry, "CNTR_EVENT_REASON") == "r"
        assert (only(entry, "CNTR_CONTAINER_RUNTIME"), only(entry, "CNTR_CONTAINER_NAME")) == (engine, one.name)
        assert only(entry, "CNTR_CONTAINER_ID") == one.id
        begun = {only(outer, "CNTR_EVENT_ID") for outer in journal.entries if outer not in inside}
        assert only(entry, "CNTR_SESSION_PARENT") in begun
    named = [one for one in journal.entries if only(one, "CNTR_CONTAINER_RUNTIME") == engine and one not in inside]
    kinds = [(only(entry, "CNTR_EVENT_ACTION"), only(entry, "CNTR_EVENT_TYPE")) for entry in named]
    assert kinds[:2] == [("attach", "start"), ("attach", "end")]
    assert kinds.count(("attach", "denied")) == 2
    for entry in named[:2]:
        assert only(entry, "CNTR_CONTAINER_NAME") == one.name
        assert only(entry, "CNTR_CONTAINER_ID") == one.id
        assert only(entry, "CNTR_CONTAINER_IMAGE_NAME").endswith("slim:1")
        assert only(entry, "CNTR_CONTAINER_IMAGE_HASH_ALL").removeprefix("sha256:") == image.removeprefix("sha256:")
