"""Hostile answers of another machine or a cluster give one line each: no traceback, and memory is bounded."""

from __future__ import annotations

import os
import resource

import pytest

from tests.nest import busybox

DEEP = "python3 -c 'print(\"[\" * 200000)'"
NOTHING = '{"metadata": {"namespace": "a", "name": "b"}, "spec": {"containers": [%s], "nodeName": "n"}}'


@pytest.fixture
def answering(tmp_path):
    """Run cntr with a shell script in place of the program NAME."""

    def run(name, script, *words, **more):
        shipped = "[ $(head -c 1 | wc -c) = 0 ] || exec cat >/dev/null\n" if name == "ssh" else ""
        (tmp_path / name).write_text(f"#!/bin/sh\n{shipped}{script}\n")
        (tmp_path / name).chmod(0o755)
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CNTR_CACHE_DIR": str(tmp_path / "cache")}
        return busybox.run(*words, env=path, **more)

    return run


@pytest.mark.parametrize("answer", ["echo 5", "echo null", "echo [1]", DEEP, "exec cat /dev/zero", "echo '\"x\"'"])
def test_a_hosts_bad_list_is_one_line(answering, answer):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = answering("ssh", answer, "ps", "--host", "far,near", preexec_fn=limited)
    table, *lines = done.stdout.splitlines()
    assert (done.returncode, table.split()[0], len(lines)) == (125, "HOST", 2), done
    assert lines[0].startswith("far: its answer is ")
    assert "Traceback" not in done.stderr


def test_a_row_of_another_hosts_is_text(answering):
    row = r'[{"name": {"a": ["\u001b]0;x\u0007"]}, "pid": 1e999, "id": null, "state": "\u001b[2J"}]'
    done = answering("ssh", f"printf '%s' '{row}'", "ps", "--host", "far,near")
    assert done.returncode == 0, done
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    "answer",
    [
        "echo nonsense",
        DEEP,
        *(f"echo '{text}'" for text in ("{}", "[]", '{"metadata": 5, "spec": []}', NOTHING % "", NOTHING % "5")),
        f"""case "$*" in *get*cntr-*) echo '{{"status": {{"containerStatuses": [{{"state": {{"waiting": null}}}}]}}}}';;
        *) echo '{NOTHING % '{"name": "c"}'}';; esac""",
    ],
)
def test_a_clusters_bad_pod_is_one_line(answering, answer):
    done = answering("kubectl", answer, "--kubectl", "pod")
    assert done.returncode == 125, done
    assert busybox.one_line_and_hint(done).endswith(": not a pod as Kubernetes describes it")
