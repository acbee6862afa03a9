"""Every error has one line that says what failed, on what and why, one that says what to do, and the exit status."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time

import pytest

from testkit.container import SlimContainer
from tests.cli.run import CNTR, ENVIRONMENT, cntr, complaint

USAGE = {
    (): ("no command", "cntr --help"),
    ("atach", "web"): ("atach: no such command", "did you mean `cntr attach`"),
    ("ls",): ("ls: no such command", "did you mean `cntr ps`"),
    ("version",): ("version: no such command", "did you mean `cntr --version`"),
    ("webserver",): ("webserver: no such command", "`cntr attach NAME` attaches to a container called webserver"),
    ("forw",): ("forw: no such command", "did you mean `cntr forward`"),
    ("--json", "ps"): ("--json: no such command", "options come behind the command"),
    ("",): (": no such command", "`cntr attach NAME` attaches to a container;"),
    ("cp", "a", "b", "web:/tmp"): ("cp: unexpected word: web:/tmp", "it takes SRC DST"),
    ("\x1b[31mred",): (r"\\x1b\[31mred: no such command", "cntr --help"),
    ("attach",): ("attach: TARGET is missing", "cntr ps"),
    ("exec",): ("exec: TARGET is missing", "cntr ps"),
    ("inspect",): ("inspect: TARGET is missing", "cntr ps"),
    ("completion",): ("completion: SHELL is missing", "cntr completion --help"),
    ("completion", "tcsh"): ("no completion for tcsh", "bash, zsh and fish"),
    ("ps", "web"): ("ps: unexpected word: web", "cntr ps --help"),
    ("ps", "--", "true"): ("ps takes no command after --", "cntr ps --help"),
    ("ps", "--jason"): ("ps: no such option: --jason", "cntr ps --help"),
    ("ps", "--json=yes"): ("--json takes no value", "cntr ps --help"),
    ("attach", "web", "--"): ("no command after --", "leave -- out"),
    ("attach", "--tools"): ("--tools needs a value: SRC", "cntr attach --help"),
    ("attach", "web", "--user"): ("--user needs a value: USER", "cntr attach --help"),
    ("attach", "--user", "1", "--user", "2", "web"): ("--user is given twice", "say it once"),
    ("attach", "--transport", "carrier-pigeon", "web"): ("not one of auto, mount, fuse", "cntr attach --help"),
    ("attach", "--no-such", "web"): ("attach: no such option: --no-such", "cntr attach --help"),
}


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_a_wrong_command_line(arguments):
    done = cntr(*arguments)
    said, hint = USAGE[arguments]
    message, advice = complaint(done)
    assert re.search(said, message)
    assert hint in advice
    assert done.returncode == 125


NAMES = {
    "no-such-container-here": "no-such-container-here: no running container of that name",
    "docker:no-such-container-here": "no running container of that name",
    "": "not a container name: ''",
    " web": "' web': no running container of that name",
    "no\udcff": r"no\\xff: no running container of that name",
    "docker:": "not a container name: 'docker:'",
    "pid:0": "pid:0: not a process id",
    "pid:one": "pid:one: not a process id",
    "4194303": "pid 4194303: no such process",
    "unit:no-such-unit": r"unit:no-such-unit\.service: no process in such a unit",
    "unit:../../etc": "not a unit name",
    "command:no such words in any command line": "no process has that in its command line",
    "a" * 5000: "not a container name",
    "../../etc/passwd": "no running container of that name",
    "web\nroot": r"web\\nroot: no running container of that name",
    "\x1b]0;title\x07": r"\\x1b\]0;title\\x07: no running container",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:30]))
@pytest.mark.parametrize("command", ["attach", "inspect"])
def test_a_name_that_is_nobodys(command, name):
    begun = time.monotonic()
    done = cntr(command, name)
    took = time.monotonic() - begun
    message, _ = complaint(done)
    assert re.search(NAMES[name], message)
    assert done.returncode == 125
    assert message.isprintable()
    assert took < 5, "a second for an unknown name, plus Python's start on a busy machine"


def test_an_unknown_name_lists_the_engines_asked():
    message, hint = complaint(cntr("attach", "no-such-container-here", DOCKER_HOST="tcp://192.0.2.1:2375"))
    assert (
        "refused: docker (DOCKER_HOST or the context names tcp://192.0.2.1:2375, a daemon on another machine" in message
    )
    assert "not on this machine: " in message
    assert "run cntr there" in hint, "the engine that did not answer may have it"


@pytest.fixture(scope="module")
def container():
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    with SlimContainer(
        "errors", files={"/etc/passwd": "slim:x:1000:1000::/:/app\n", "/etc/group": "slim:x:1000:\n"}
    ) as slim:
        yield str(slim.pid)


@pytest.mark.parametrize(
    "command", [("attach", "--share", ".", "{}", "--", "true"), ("cp", "{}:/etc/passwd", ".")], ids=" ".join
)
def test_a_working_directory_that_is_gone(container, tmp_path, command):
    gone = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", gone, "sh", *CNTR, *(word.format(container) for word in command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 125
    said = [line for line in done.stderr.splitlines() if line.startswith(("cntr: the", "hint: "))]
    assert said == [
        "cntr: the working directory: No such file or directory",
        "hint: is the working directory still there?",
    ]


REFUSED = {
    ("--tools", "./no-such-directory"): (r"--tools \./no-such-directory: No such file or directory", "root filesystem"),
    ("--tools", "no-such-toolbox"): ("no-such-toolbox: no running container", "cntr ps"),
    ("--user", "nobody-here"): ("--user nobody-here: the container's /etc/passwd has no such user", "numeric uid"),
    ("--user", "slim:no-such-group"): ("the container's /etc/group has no such group", "numeric gid"),
    ("-e", "=x"): ("-e '=x': not NAME=VALUE", "-e DEBUG=1"),
    ("-w", "/no/such/directory"): ("change to directory /no/such/directory: No such file or directory", "-w takes"),
    ("--binding", "devfuse"): ("--binding selects the FUSE library", "--transport fuse"),
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_an_attach_that_cannot_be(container, options):
    done = cntr("attach", container, *options, "--", "true")
    said, hint = REFUSED[options]
    message, advice = complaint(done)
    assert re.search(said, message)
    assert hint in advice
    assert done.returncode == 125


@pytest.mark.parametrize("base", ["relative", "/", "/a/../b", "/trailing/"])
def test_a_base_directory_that_is_no_clean_path(container, base):
    done = cntr("attach", container, "--", "true", CNTR_BASE_DIR=base)
    assert "not a clean absolute path" in complaint(done)[0]
    assert done.returncode == 125


def test_a_command_that_is_not_there_and_one_that_is_no_program(container, tmp_path):
    done = cntr("attach", container, "--", "no-such-program")
    message, hint = complaint(done)
    assert "run no-such-program: No such file or directory" in message
    assert "on the tools' side" in hint
    assert done.returncode == 127
    plain = tmp_path / "plain"
    plain.write_text("no program\n")
    done = cntr("attach", container, "--share", str(plain), "--", str(plain))
    assert f"run {plain}: Permission denied" in complaint(done)[0]
    assert done.returncode == 126
    plain.chmod(plain.stat().st_mode | stat.S_IXUSR)
    done = cntr("attach", container, "--share", str(plain), "--", str(plain))
    assert f"run {plain}: Exec format error" in complaint(done)[0]
    assert done.returncode == 126


def test_exec_of_what_the_container_lacks_names_the_other_way(container):
    done = cntr("exec", container)
    message, hint = complaint(done)
    assert "/bin/sh: No such file or directory" in message
    assert "your own tools" in hint or "cntr attach" in hint
    assert done.returncode == 127


def test_another_users_container_is_refused_with_the_way_in(container):
    done = cntr("attach", container, "--", "true", user=65534)
    message, hint = complaint(done)
    assert re.search(r"pid \d+: (Permission denied|Operation not permitted)", message)
    assert hint.startswith("only root, or the owner")
    assert f"attach {container} -- true`" in hint
    assert done.returncode == 125


def test_debug_shows_where(container):
    done = cntr("--debug", "attach", container, "--user", "nobody-here")
    assert "Traceback" in done.stderr
    assert "CntrError" in done.stderr
    assert "--debug" not in complaint(cntr("attach", container, "--user", "nobody-here", "--", "tool", "--debug"))[0]


def test_inspect_as_json_holds_what_the_table_holds(container):
    rows = json.loads(cntr("inspect", container, "--json").stdout)
    table = cntr("inspect", container).stdout.splitlines()
    assert table[0].split() == ["PROPERTY", "VALUE", "INHERITED", "WHY"]
    assert len(table) == 1 + len(rows)
    assert {row["inherited"] for row in rows} <= {"yes", "no", "partly", "copy", "shown", "exec only"}
    assert all(row["why"] for row in rows if row["inherited"] != "yes"), (
        "a property that is not inherited needs a reason"
    )
    by_name = {row["property"]: row for row in rows}
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        assert by_name[f"namespace {kind}"]["value"].startswith(f"{kind}:[")
