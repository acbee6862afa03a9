"""The suggested command works when it is pasted into a shell, however cntr is installed and sudo configured."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from cntr.remote import onefile
from testkit.container import SlimContainer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
USER = 29997
INTERPRETER = os.path.realpath(sys.executable)  # an interpreter that another user may run
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
# sudo's defaults: a new environment, secure_path (sudoers(5)).
SUDO = f'#!/bin/sh\nexec env -i TESTMARK="$TESTMARK" CNTR_CACHE_DIR="$CNTR_CACHE_DIR" PATH={SYSTEM} "$@"\n'


def run(command: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)


@pytest.fixture
def place():
    """A home with the package, a script in a directory outside secure_path, the one file, and a sudo."""
    with tempfile.TemporaryDirectory(prefix="cntr-sudo-") as name:  # other users can reach it, unlike pytest's own
        furnish(pathlib.Path(name))
        yield pathlib.Path(name)


def furnish(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    shutil.copytree(onefile.PACKAGE, tmp_path / "checkout/cntr", ignore=shutil.ignore_patterns("__pycache__"))
    onefile.write(str(tmp_path / "cntr.pyz"))
    (tmp_path / "plain.pyz").write_bytes((tmp_path / "cntr.pyz").read_bytes())
    local, sudo = tmp_path / ".local/my bin/cntr", tmp_path / "sudo/sudo"
    for path, text in ((local, f"#!{INTERPRETER}\nimport sys; sys.path.insert(0, {str(tmp_path / 'checkout')!r})\n"
                       "from cntr.__main__ import main\nmain()\n"), (sudo, SUDO)):  # fmt: skip
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, USER, USER)


def test_the_command_line_of_the_hint_works(place):
    environment = {"TESTMARK": os.environ.get("TESTMARK", ""), "HOME": str(place), "PYTHONPATH": ""}
    path = f"{place}/sudo:{place}/.local/my bin:{SYSTEM}"
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    (place / "cache").mkdir(mode=0o700)
    with SlimContainer("sudo") as container:
        tail = ["attach", str(container.pid), "-e", "WORD=it's $HOME", "--", "sh", "-c", 'echo "$WORD"']
        for program, directory, more in (
            ([INTERPRETER, "-m", "cntr"], "checkout", {}),
            ([INTERPRETER, "-m", "cntr"], "", {"PYTHONPATH": f"{place}/checkout"}),
            (["cntr"], "", {}),
            (["./cntr.pyz"], "", {}),
            ([INTERPRETER, "../plain.pyz"], "checkout", {}),
        ):
            settings = environment | {"PATH": path} | more
            where = place / directory
            done = run([*drop, "env", *program, *tail], env=settings, cwd=where)
            found = re.fullmatch(r"cntr: [^\n]*\nhint: [^\n]*: try `(sudo [^\n]*)`\n", done.stderr)
            assert found, (program, done)
            settings["CNTR_CACHE_DIR"] = f"{place}/cache"
            again = run(["sh", "-c", found[1]], env=settings, cwd=where)
            assert (again.stdout, again.stderr, again.returncode) == ("it's $HOME\n", "", 0), found[1]
        (place / "bare").mkdir()
        for name in ("setpriv", "env"):
            (place / "bare" / name).symlink_to(shutil.which(name))
        without = environment | {"PATH": f"{place}/.local/my bin:{place}/bare"}
        bare = run([*drop, "env", "cntr", "attach", str(container.pid)], env=without)
        assert f": as root `'{place}/.local/my bin/cntr' attach {container.pid}`\n" in bare.stderr, bare
