"""The recipes of docs/howto.md, on both transports, in a container with its own users."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import syscalls
from testkit import howto
from testkit.waiting import wait_until
from tests.nest.busybox import REPOSITORY, BusyboxContainer
from tests.nest.tty import Terminal

PROGRAM = Path(REPOSITORY) / "lab" / "provision" / "slim-app.c"
USERS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:the application:/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\napp:x:1000:\n",
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusyboxContainer]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: it builds the container's program")
    program = tmp_path_factory.mktemp("howto") / "slim-app"
    subprocess.run(["gcc", "-g", "-O0", "-fno-omit-frame-pointer", "-static", "-o", program, PROGRAM], check=True)
    with BusyboxContainer(programs={"/slim-app": str(program)}, argv=["/slim-app"], files=USERS) as container:
        subprocess.run(["nsenter", "-t", str(container.pid), "-n", "ip", "link", "set", "lo", "up"], check=True)
        (container.root / "app").unlink()
        (container.root / "app").mkdir()
        yield container


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a ``cntr`` in PATH."""
    directory = tmp_path_factory.mktemp("bin")
    cntr = directory / "cntr"
    cntr.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m cntr "$@"\n')
    cntr.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize("transport", ["mount", "fuse"])
@pytest.mark.parametrize("recipe", howto.RECIPES, ids=lambda recipe: f"{recipe.tool}-{recipe.shows[:12]}")
def test_a_recipe(web: BusyboxContainer, environment: dict[str, str], recipe: howto.Recipe, transport: str) -> None:
    if shutil.which(recipe.tool) is None:
        pytest.skip(f"{recipe.tool} is missing")
    script = recipe.script(str(web.pid), f"--transport {transport}")
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, (script, done)


def test_files_in_and_out(web: BusyboxContainer, environment: dict[str, str], tmp_path: Path) -> None:
    """Every ``cntr cp`` of "Change a file in an image without an editor", in order."""
    (web.root / "app" / "dump.bin").write_bytes(bytes(range(256)))
    (web.root / "srv").mkdir(exist_ok=True)
    (web.root / "srv" / "page").write_text("x")
    (tmp_path / "config.toml").write_text("a = 1\n")
    (tmp_path / "config.in").write_text("b = $WORTH\n")

    def recipe(beginning: str) -> str:
        command = howto.line(beginning, str(web.pid))
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment | {"WORTH": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done)
        return done.stdout

    recipe("cntr cp web:/app/dump.bin .")
    assert (tmp_path / "dump.bin").read_bytes() == bytes(range(256))
    recipe("cntr cp config.toml web:/app/")
    assert (web.root / "app" / "config.toml").read_text() == "a = 1\n"
    assert recipe("cntr cp web:/app/dump.bin /dev/stdout | xxd").startswith("00000000: 0001 0203")
    recipe("cntr cp --json web:/srv")
    assert (tmp_path / "srv" / "page").read_text() == "x"
    assert (tmp_path / "events.jsonl").read_text()
    if shutil.which("envsubst") is None:
        pytest.skip("envsubst is missing (Debian: gettext-base)")
    recipe("envsubst < config.in | cntr cp")
    assert (web.root / "app" / "config.toml").read_text() == "b = 2\n"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_an_editor(web: BusyboxContainer, environment: dict[str, str], transport: str) -> None:
    """At a terminal; it writes the container's own file."""
    if shutil.which("vim") is None:
        pytest.skip("vim is missing")
    file = web.root / "app" / "config.toml"
    file.write_text("a = 1\n")
    command = howto.line("cntr attach web -- vim", str(web.pid)).replace(
        " attach ", f" attach --transport {transport} "
    )
    with Terminal("sh", "-c", command, env={**environment, "TERM": "xterm"}) as terminal:
        terminal.wait_for(r'config\.toml" 1L', 30)
        terminal.type(f"ob = '{transport}'\x1b:wq\r")
        assert terminal.process.wait(30) == 0
    assert file.read_text() == f"a = 1\nb = '{transport}'\n"
    assert not list(file.parent.glob(".*.sw?"))


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_what_is_brought_in(web: BusyboxContainer, environment: dict[str, str], tmp_path: Path, transport: str) -> None:
    """The commands of "What a session sees, and how to bring more in"."""
    (tmp_path / "note").write_text("of the caller\n")
    (tmp_path / "dumps").mkdir()
    (tmp_path / "gdb-scripts").mkdir()
    script = f"shell cat /proc/1/comm > {tmp_path}/dumps/comm\ninfo proc\nquit\n"
    (tmp_path / "gdb-scripts" / "app").write_text(script)

    def recipe(beginning: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = howto.line(beginning, str(web.pid))
        return subprocess.run(
            ["sh", "-c", command.replace(" attach ", f" attach --transport {transport} ")],
            cwd=tmp_path,
            env={**environment, "HOME": str(tmp_path), "SHELL": "/bin/sh"},
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    read = recipe("cntr attach web --share .", f"cat {tmp_path}/note; touch {tmp_path}/new || echo refused")
    assert read.stdout == "of the caller\nrefused\n", read
    assert recipe("cntr attach -v web -- true").returncode == 0
    if shutil.which("gdb") is None:
        pytest.skip("gdb is missing")
    done = recipe("cntr attach web --share ~/gdb-scripts")
    assert done.returncode == 0, done
    assert "process 1" in done.stdout
    assert (tmp_path / "dumps" / "comm").read_text() == "slim-app\n"


PACKAGE = """Package: slim-app
Status: install ok installed
Maintainer: nobody <nobody@example.org>
Architecture: all
Version: 4.2-1
Description: the application
"""


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_what_is_installed_in_it(environment: dict[str, str], transport: str) -> None:
    """The container's packages, not the tools', and which files have been changed."""
    if shutil.which("dpkg") is None:
        pytest.skip("dpkg is missing")
    info = "/var/lib/dpkg/info/slim-app"
    files = {
        "/var/lib/dpkg/status": PACKAGE,
        f"{info}.list": "/.\n/srv\n/srv/page\n",
        f"{info}.md5sums": f"{hashlib.md5(b'as it was').hexdigest()}  srv/page\n",
        "/srv/page": "changed",
    }
    with BusyboxContainer(files=files) as container:

        def shown(beginning: str) -> str:
            command = howto.line(beginning, str(container.pid))
            command = command.replace(" attach ", f" attach --transport {transport} ")
            done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
            return done.stdout

        listed = [line.split()[1:3] for line in shown("cntr attach web -- dpkg --root=/var/lib/cntr -l").splitlines()]
        assert listed[-1] == ["slim-app", "4.2-1"]
        assert ["bash"] not in [row[:1] for row in listed]
        assert shown("cntr attach web -- dpkg --root=/var/lib/cntr -V").split() == ["??5??????", "/srv/page"]


def test_a_terminal_with_a_name(environment: dict[str, str]) -> None:
    """exec has a terminal without a name, and script(1) provides a name, as the howto says."""
    if shutil.which("script") is None:
        pytest.skip("script is missing (Debian: bsdutils)")
    with BusyboxContainer(busybox=False, mounts=_with_the_machines_programs) as container:
        command = howto.line("cntr exec web -- script", str(container.pid))
        with Terminal("sh", "-c", command.replace("/dev/null", "-c tty /dev/null"), env=environment) as terminal:
            terminal.wait_for("/dev/pts/[0-9]", 30)
            assert terminal.process.wait(30) == 0
        with Terminal(
            "cntr", "exec", str(container.pid), "--", "sh", "-c", "tty; test -t 0 && echo one", env=environment
        ) as bare:
            bare.wait_for("not a tty\r?\none", 30)
            assert bare.process.wait(30) == 0


SLEEPER = "public class Sleeper { public static void main(String[] a) throws Exception { Thread.sleep(1000000); } }"
MACHINE = ("/usr", "/etc", "/bin", "/lib", "/lib64")


def _with_the_machines_programs(root: str) -> None:
    """Mount the host's programs read-only in the container's root."""
    for name in MACHINE:
        if os.path.isdir(name):
            os.makedirs(f"{root}{name}", exist_ok=True)
            syscalls.mount(name, f"{root}{name}", None, syscalls.MS_BIND)
    for name in ("/tmp", "/srv"):
        os.makedirs(f"{root}{name}", exist_ok=True)


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_a_java_virtual_machine(environment: dict[str, str], tmp_path: Path, transport: str) -> None:
    if missing := [name for name in ("java", "javac", "jcmd") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is missing (Debian: default-jdk-headless)")
    (tmp_path / "Sleeper.java").write_text(SLEEPER)
    subprocess.run(["javac", "-d", tmp_path, tmp_path / "Sleeper.java"], check=True)
    programs = {"/srv/Sleeper.class": str(tmp_path / "Sleeper.class")}
    argv = [shutil.which("java") or "", "-Xmx64m", "-cp", "/srv", "Sleeper"]
    with BusyboxContainer(busybox=False, programs=programs, argv=argv, mounts=_with_the_machines_programs) as container:
        seen = Path(f"/proc/{container.pid}/root/tmp")
        wait_until(lambda: (seen / "hsperfdata_root" / "1").exists(), "the virtual machine", 30)
        command = howto.line("cntr attach web -- sh -c '\n", str(container.pid))
        done = subprocess.run(
            ["sh", "-c", command.replace(" attach ", f" attach --transport {transport} ", 1)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done
        assert "Heap dump file created" in done.stdout, done
        assert (seen / "heap.hprof").read_bytes()[:12] == b"JAVA PROFILE"
