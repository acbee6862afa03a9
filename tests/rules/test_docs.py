"""The documentation agrees with the code: commands, options, names, links."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from cntr.cli import manual
from cntr.cli.options import COMMANDS
from tests.rules import source, wrap
from tests.rules.written import MARKS, WRITTEN, rewritten

PAGES = [*source.ROOT.glob("*.md"), *(source.ROOT / "docs").glob("*.md")]
README = (source.ROOT / "README.md").read_text()
ARCHITECTURE = (source.ROOT / "docs/architecture.md").read_text()


def sessions() -> set[str]:
    """The nox sessions: the functions of noxfile.py that are decorated with nox.session."""
    text = (source.ROOT / "noxfile.py").read_text()
    return set(re.findall(r"^@nox\.session[^\n]*\ndef (\w+)\(", text, re.MULTILINE))


def test_the_readme_opens_with_two_commands_whose_sessions_exist():
    block = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
    assert block
    assert README.index(block.group(0)) < 400
    commands = [line.partition("#")[0].split() for line in block.group(1).splitlines()]
    assert [words[:2] for words in commands] == [["sudo", "./bootstrap"]] * 2
    assert {word for words in commands for word in words[2:]} <= sessions()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_session_that_a_page_names_exists(page):
    text = page.read_text()
    named = re.findall(r"(?:nox -s|\./bootstrap) ([a-z]+(?: [a-z]+)*)", text)
    assert {word for words in named for word in words.split()} <= sessions()


def test_contributing_lists_every_session():
    text = (source.ROOT / "CONTRIBUTING.md").read_text()
    assert {name for name in sessions() if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_from_a_table_is_the_table(name):
    text = (source.ROOT / name).read_text()
    assert len(MARKS.findall(text)) == len(WRITTEN[name])
    assert text == rewritten(text, WRITTEN[name]), "run `python -m tests.rules.written`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_shows_exists(page):
    names = {command.name: command for command in COMMANDS}
    for words in re.findall(r"`?(?:^|[`$#] |sudo )cntr ([a-z]+ [^`\n|]*)", page.read_text(), re.MULTILINE):
        name, *rest = words.split()
        if name not in names:
            continue
        known = {option for o in names[name].options for option in o.names} | {"-h", "--help", "--debug", "--"}
        own = rest[: rest.index("--")] if "--" in rest else rest
        assert {word.partition("=")[0].rstrip(",.;:)") for word in own if word.startswith("--")} <= known, words


def test_the_drawn_walk_names_what_exists():
    steps = re.findall(r"^[\s└─│\d]*((?:[a-z_]+)\.(?:[A-Za-z_]+)(?:\.[a-z_]+)?) {2}", ARCHITECTURE, re.MULTILINE)
    assert len(steps) > 15
    for step in steps:
        module, *path = step.split(".")
        (name,) = [name for name in source.modules("cntr") if name.rpartition(".")[2] == module]
        found: object = importlib.import_module(name)
        for name in path:
            found = getattr(found, name)
    nest = importlib.import_module("cntr.attach.nest").Nest
    inner = re.findall(r"^ {6}([a-z_]+) ", ARCHITECTURE.partition("nest.Nest.assemble")[2], re.MULTILINE)
    assert len(inner) >= 3
    assert [name for name in inner if not hasattr(nest, name)] == []


# --- what is generated -------------------------------------------------------------------------------------------------


def test_the_man_page_renders_without_a_warning():
    if not shutil.which("groff"):
        pytest.skip("not installed: groff-base (apt-get install)")
    page = subprocess.run([sys.executable, "-m", "cntr.cli.manual"], capture_output=True, check=True).stdout
    done = subprocess.run(["groff", "-man", "-Tutf8", "-Kutf8", "-ww"], input=page, capture_output=True, check=True)
    assert done.stderr == b""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout.decode())
    for command in COMMANDS:
        assert f"CNTR {command.name.upper()}" in shown
        for option in command.options:
            assert option.names[-1] in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_parses(shell):
    if not shutil.which(shell):
        pytest.skip(f"not installed: {shell} (apt-get install)")
    script = manual.completion(shell)
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shell", "ask"),
    [
        (
            "fish",
            'source $argv[1]; for line in "attach w" "attach --transport m" "completion z"; complete -C "cntr $line"; end',
        ),
        ("zsh", "autoload -U compinit; compinit -D; source $1; (( $+functions[_cntr] )) && print web mount zsh"),
    ],
)
def test_other_shells_take_it(tmp_path, shell, ask):
    """fish also parses a quoted command again when it completes."""
    if not shutil.which(shell):
        pytest.skip(f"not installed: {shell} (apt-get install)")
    (tmp_path / "cntr").write_text('#!/bin/sh\necho \'    "name": "web",\'\n')
    (tmp_path / "cntr").chmod(0o755)
    (tmp_path / "script").write_text(manual.completion(shell))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    arguments = [shell, "-c", ask, *(["zsh"] if shell == "zsh" else []), str(tmp_path / "script")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert {"web", "mount", "zsh"} <= set(done.stdout.split()), done


def test_bash_completes_commands_options_and_nothing_else():
    def complete(*words: str) -> list[str]:
        script = f'{manual.completion("bash")}COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cntr; printf "%s\\n" "${{COMPREPLY[@]}}"'
        shown = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
        return shown.stdout.split()

    assert complete("cntr", "att") == ["attach"]
    assert set(complete("cntr", "")) == {command.name for command in COMMANDS}
    assert complete("cntr", "attach", "--read") == ["--read-only"]
    assert complete("cntr", "ps", "--read") == []
    assert complete("cntr", "attach", "--transport", "") == ["auto", "mount", "fuse"]
    assert complete("cntr", "run", "--network", "h") == ["host"]
    assert complete("cntr", "completion", "z") == ["zsh"]
    assert complete("cntr", "sessions", "") == ["list", "end"]
    assert complete("cntr", "attach", "--reason", "") == []
    assert complete("cntr", "ps", "") == []
    assert set(complete("cntr", "attach", "--share", "/etc/pass")) == set(map(str, pathlib.Path("/etc").glob("pass*")))
    assert "readlink" in complete("cntr", "attach", "web", "--", "readlin")
    assert "/etc/passwd" in complete("cntr", "attach", "web", "--", "cat", "/etc/passw")


@pytest.mark.parametrize("page", wrap.PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_100(page):
    assert not wrap.too_long(page), "run `python -m tests.rules.wrap`"


# --- words ------------------------------------------------------------------------------------------------------------

# Used for two things of one kind, in unrelated packages.
TWICE = frozenset(
    "Caller Reader Request Progress Source View Recorder Report Connection Job Level Sender Refused Entry Image Mount Elf".split()
)
# Words of the kernel, engines and file formats, and those common in all programs.
COMMON = frozenset(
    """
    accesses ambiguous answer answered archive asked attributes authentication backing blob bounded buffers cache caller cgroup changes
    channel choices cluster cntr command compare compressed connection console container containerd context core credentials
    datagrams devices dial dialogue difference directory disk elf endpoint engine entry error events exec exercise failed fds
    file files filter finding flow forward found fsetid function fuse gone gzip handle handler heartbeat held helper host http
    id idle idler image in incoming input interrupted invocation job join kind known layer layout level library limits linter
    listener live lock locked locks long loop malformed manager members membership memory meta metadata module mount mounted mountpoint
    mounts names namespace node not open opener opening operation operations option options ordinary outcome outgoing output own
    owner owners package parsed partial parts passthrough peer plain pod pointer policy private progress protocol pty pump
    query queue quota raised raw reader reason receiver recorded recorder records refused remote replaced replies report request
    root row rule run running runtime screen seeking sender served server service session settings setup side signal signals
    slim sockets source ssh stack state stdio stop stopped store stream streams strict subcommand table target task tell term
    terminal there ticker timer toml tools trace traced tree unpacked usage user verified view waiter wanted watch watched
    without work workers xattrs zstd
    """.split()
)


def words_of(name: str) -> list[str]:
    """The words in a class's name."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z0-9]*", name)]


def classes() -> list[tuple[str, str]]:
    """(module, name) of every class of cntr."""
    return [
        (module, node.name)
        for module, path in source.modules("cntr").items()
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.ClassDef)
    ]


def test_a_name_is_one_class():
    seen: dict[str, str] = {}
    twice = {}
    for module, name in classes():
        if name in seen and name not in TWICE:
            twice[name] = (seen[name], module)
        seen[name] = module
    assert not twice, "a word with two meanings"


def test_the_glossary_has_every_word_of_our_own():
    glossary = (source.ROOT / "docs/glossary.md").read_text().lower()
    listed = set(re.findall(r"[a-z]+", " ".join(re.findall(r"^\| ([^|]*) \|", glossary, re.MULTILINE))))
    lost = {
        f"{word} ({module}.{name})"
        for module, name in classes()
        for word in words_of(name)
        if word not in COMMON and not {word, word.removesuffix("s")} & listed
    }
    assert not lost, "explain a word of this project in docs/glossary.md; add a common one to COMMON"
