"""Six engines at once: each container by its bare name, and ``cntr ps`` with all of them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys

from testkit.engines import rigs

TOGETHER = ("docker", "podman", "podman_rootless", "containerd", "lxc", "nspawn", "runc")


def cntr(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "cntr", *arguments]
    where = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        command, env=environment, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_table_of_them_all(request):
    with contextlib.ExitStack() as stack:
        containers = {name: stack.enter_context(rigs.open_rig(request, name).container()) for name in TOGETHER}
        paused = stack.enter_context(rigs.open_rig(request, "docker").container("paused"))
        environment = dict(os.environ)
        for container in containers.values():
            environment |= container.rig.settings
        rows = {row["pid"]: row for row in json.loads(cntr(environment, "ps", "--json"))}
        table = cntr(environment, "ps").splitlines()
        head, lines = table[0], table[1:]
        for name, container in [*containers.items(), ("docker", paused)]:
            row = rows[container.pid]
            assert (row["engine"], row["name"]) == (container.rig.engine, container.name)
            assert container.id.startswith(row["id"])
            assert len(row["id"]) <= 12 or container.id == container.name
            assert row["state"] == ("paused" if container is paused else "running")
            assert row["owner"] == (f"uid {container.rig.uid}" if name == "podman_rootless" else "")
            assert row["userns"] == ("own" if name == "podman_rootless" else "host")
            assert ("slim:1" in row["image"]) == (name in ("docker", "podman")), "if the engine's files show it"
            (line,) = [line for line in lines if f" {container.name} " in line]
            assert line[head.index("PID") :].split()[0] == str(container.pid), "columns are aligned with their headings"
            assert line[head.index("STATE") :].startswith(row["state"])
            if container is not paused:
                assert cntr(environment, "exec", container.name, "--", "/bin/cat", "/etc/motto") == "slim\n", (
                    "the name alone is enough"
                )
        assert len({container.rig.engine for container in containers.values()}) == 6
        assert lines == sorted(lines, key=lambda line: line.split()[0]), "sorted by engine"


def test_an_engine_that_answers_late_is_heard_while_commands_are_asked(monkeypatch):
    """On a slow machine the deadline may pass. Answers that arrive before the engines' commands end still count."""
    from cntr.engines import names
    from cntr.engines.answer import Answer
    from cntr.engines.container import Container
    from cntr.engines.registry import REGISTRY

    answer = Answer(REGISTRY[0])

    def asked_meanwhile(answers, names, name, deadline):
        answers[0].containers.append(Container("docker", "box", os.getpid(), owner=0))
        return []

    monkeypatch.setattr(names, "ask", lambda *_arguments, **_more: [answer])
    monkeypatch.setattr(names, "_by_command", asked_meanwhile)
    found, _ = names._find("box", ["docker"], [REGISTRY[0]], 0.0)
    assert [container.name for container in found] == ["box"]


def test_a_late_engine_is_asked_again_before_a_name_counts_as_unknown(monkeypatch):
    """On a busy machine Docker takes longer than an unknown name may. Only those that were late are asked again."""
    from cntr.engines import names
    from cntr.engines.answer import LATE, Answer
    from cntr.engines.container import Container
    from cntr.engines.registry import REGISTRY

    asked = []

    def ask(entries, name, deadline, method="find", **_more):
        if method == "find_by_process":
            return []
        asked.append([entry.name for entry in entries])
        answers = [Answer(entry) for entry in entries]
        for answer in answers:
            answer.refused = LATE[1] if answer.entry.name == "docker" and len(asked) == 1 else ""
            if len(asked) == 2:
                answer.containers.append(Container("docker", "box", os.getpid(), owner=0))
        return answers

    monkeypatch.setattr(names, "ask", ask)
    some = [entry for entry in REGISTRY if entry.name in ("docker", "podman")]
    assert names._only("box", "box", "", some, REGISTRY, 0.0).name == "box"
    assert asked == [[entry.name for entry in some], ["docker"]]
