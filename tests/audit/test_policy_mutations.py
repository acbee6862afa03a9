"""Each defence of a policy is disabled once, and what it forbids must then succeed, as in tests/attacks/test_mutations.py."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.audit.support import AuditedHost
from tests.nest.busybox import REPOSITORY, BusyboxContainer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a policy is root's: needs root")
MALLORY = 29_990  # is allowed one container
BEHIND_SUDO = {"SUDO_UID": str(MALLORY), "SUDO_GID": str(MALLORY), "SUDO_USER": "mallory"}
SECRET = "secret of root's"


class Scene:
    """A machine with a policy for mallory, a file of root's, and cntr with or without a defence."""

    def __init__(self, host: AuditedHost, container: BusyboxContainer, files: pathlib.Path, undone: str) -> None:
        self.host, self.pid, self.files = host, str(container.pid), files
        self.code = f"import sys; {undone or 'pass'}; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
        host.policy = f"[[allow]]\nusers = ['mallory']\ntargets = ['pid:{self.pid}']\n[[allow]]\nusers = ['root']\n"
        host.setup = f"echo mallory:x:{MALLORY}:{MALLORY}::/nonexistent:/bin/sh >> /etc/passwd\n"
        for path in (files, *list(files.parents)[:-2]):
            path.chmod(0o755)
        self.secret = files / "secret"
        self.secret.write_text(SECRET)
        self.secret.chmod(0o600)

    def command(self, *words: str) -> list[str]:
        return [*self.host.prefix(), sys.executable, "-c", self.code, *words]

    def environment(self, user: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": REPOSITORY, **user}

    def cntr(self, *words: str, user: dict[str, str] = BEHIND_SUDO) -> str:
        """What cntr prints for mallory behind sudo, or for another user."""
        done = subprocess.run(
            self.command(*words), env=self.environment(user), capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout


def share(scene: Scene) -> bool:
    path = str(scene.secret)
    return SECRET in scene.cntr("attach", scene.pid, "--share", path, "--", "cat", path)


def read(scene: Scene) -> bool:
    taken = f"/taken-{scene.files.name}"
    scene.cntr("cp", str(scene.secret), f"{scene.pid}:{taken}")
    return SECRET in scene.cntr("exec", scene.pid, "--", "/bin/cat", taken)


def written(scene: Scene) -> bool:
    scene.cntr("cp", f"{scene.pid}:/bin/busybox", str(scene.files / "planted"))
    return (scene.files / "planted").exists()


def command(scene: Scene) -> bool:
    return SECRET in scene.cntr("forward", scene.pid, "0:80", "--", "cat", str(scene.secret))


def socket(scene: Scene) -> bool:
    path = f"{scene.files}/socket"
    return "made" in scene.cntr("forward", scene.pid, f"{path}:80", "--", "sh", "-c", f"test -S {path} && echo made")


def recording(scene: Scene) -> bool:
    header, event = {"version": 2, "width": 80, "height": 24}, [0.1, "o", f"{SECRET}\r\n"]
    scene.secret.write_text(f"{json.dumps(header)}\n{json.dumps(event)}\n")
    return SECRET in scene.cntr("replay", str(scene.secret))


def sessions(scene: Scene) -> bool:
    words = scene.command("attach", scene.pid, "--reason", SECRET, "--", "sh", "-c", "echo up; exec sleep 60")
    with subprocess.Popen(words, env=scene.environment({}), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            assert SECRET in scene.cntr("sessions", "--json", user={})
            return SECRET in scene.cntr("sessions", "--json")
        finally:
            process.terminate()


# defence → (mutation, attack)
DEFENCES: dict[str, tuple[str, Callable[[Scene], bool]]] = {
    "a share is the caller's own": (
        "import cntr.audit.policy as m; m.Policy.check_share = lambda self, path, owner: None",
        share,
    ),
    "a copy reads by the caller's rights": (
        "import contextlib, cntr.cp.host_end as m; m.HostWork._callers_rights = lambda self: contextlib.nullcontext()",
        read,
    ),
    "a copy writes by the caller's rights": (
        "import contextlib, cntr.cp.host_end as m; m.HostWork._callers_rights = lambda self: contextlib.nullcontext()",
        written,
    ),
    "a forward's command is the caller's": (
        "import cntr.audit.behind_sudo as m; m.CallerOpener.become = lambda self, variables: None",
        command,
    ),
    "a forward's socket is made by the caller's rights": (
        "import cntr.audit.behind_sudo as m; m.caller = lambda: None",
        socket,
    ),
    "a recording is opened by the caller's rights": (
        "import cntr.audit.behind_sudo as m; m.caller = lambda: None",
        recording,
    ),
    "others' sessions take a rule": (
        "import cntr.audit.policy as m; m.Policy.whose_sessions = lambda self: None",
        sessions,
    ),
}


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize("undone", [True, False], ids=["without it", "with it"])
def test_the_attack_succeeds_only_without_its_defence(place, container, tmp_path, name, undone):
    mutation, attack = DEFENCES[name]
    scene = Scene(place, container, tmp_path, mutation if undone else "")
    assert attack(scene) == undone
