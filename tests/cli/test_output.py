"""Reports: tables and JSON, readers that go away, full disks; the exit status and streams of a command."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from testkit.container import SlimContainer
from tests.cli.run import CNTR, ENVIRONMENT, cntr, complaint


@pytest.mark.parametrize("command", ["ps", "doctor"])
def test_json_is_a_list_of_the_tables_rows(command):
    done = cntr(command, "--json")
    rows = json.loads(done.stdout)
    assert isinstance(rows, list)
    assert done.stderr == ""
    head = cntr(command).stdout.splitlines()[0]
    columns = {"ps": "engine name id pid state owner userns image", "doctor": "feature state fix"}[command].split()
    assert head.split() == [column.upper() for column in columns]
    assert all(list(row) == columns for row in rows)


def test_doctor_gives_a_fix_for_whatever_is_missing():
    done = cntr("doctor", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode in (0, 125)
    assert all(row["fix"] for row in rows if row["state"] in ("no", "not here"))
    nobody = cntr("doctor", "--json", user=65534)
    assert next(row for row in json.loads(nobody.stdout) if row["feature"] == "root")["state"] == "no"
    assert nobody.stderr == ""


@pytest.mark.parametrize("command", ["ps", "doctor", "--help", "completion bash"])
def test_a_reader_that_goes_away_is_no_error(command):
    """As in ``cntr ps | head -1``: the reader has closed the pipe before the first byte."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*CNTR, *command.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")


def test_head_sees_its_line():
    shell = 'exec 2>&1; "$@" doctor | head -1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *CNTR], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout.splitlines()[0].split() == ["FEATURE", "STATE", "FIX"]
    assert done.stdout.splitlines()[1] in ("0", "125", "141")
    assert len(done.stdout.splitlines()) == 2


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*CNTR, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    assert done.returncode == 125
    assert done.stderr.startswith("cntr: standard output: No space left on device\nhint: ")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("exec no-such-container true", 125),
        ("no-such-command", 125),
        ("cp --json no-such:/x .", 125),
        ("ps --host ''", 125),
    ],
)
def test_a_standard_error_that_takes_nothing_changes_no_status(words, status):
    """It is full, or its reader has gone; Python's own way is status 120, or 1."""
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full, open(writing, "wb") as gone:
        for error in (full, gone):
            done = subprocess.run(
                [*CNTR, *words.split()], stdout=subprocess.PIPE, stderr=error, env=ENVIRONMENT, check=False
            )
            assert (done.returncode, done.stdout) == (status, b""), error


# --- a command's own -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def container():
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    with SlimContainer("output") as slim:
        yield str(slim.pid)


@pytest.mark.parametrize("script", ["exit 0", "exit 3", "exit 255", "kill -TERM $$", "kill -KILL $$", "kill -PIPE $$"])
def test_the_exit_status_is_the_shells(container, script):
    here = subprocess.run(["sh", "-c", f"sh -c '{script}'; exit $?"], check=False).returncode
    done = cntr("attach", container, "--", "sh", "-c", script)
    assert done.returncode == here
    assert done.stderr == ""


def test_bytes_go_through_as_they_are(container):
    every = bytes(range(256)) * 300
    command = [*CNTR, "attach", container, "--", "cat"]
    done = subprocess.run(command, input=every, capture_output=True, env=ENVIRONMENT, timeout=60, check=True)
    assert done.stdout == every


def test_stdout_and_stderr_stay_apart(container):
    done = cntr("attach", container, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_a_closed_stdin_is_not_replaced(container):
    command = f"exec {' '.join(CNTR)} attach {container} -- sh -c 'cat; echo end' <&-"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert "end" in done.stdout


def test_arguments_are_words_not_a_command_line(container):
    words = ["a b", "", "$HOME", "'", "*", "--help", "\n"]
    done = cntr("attach", container, "--", "printf", "[%s]", *words)
    assert done.stdout == "".join(f"[{word}]" for word in words)


def test_the_variables_of_a_session(container):
    shown = dict(
        line.partition("=")[::2] for line in cntr("attach", container, "-e", "A=1=2", "--", "env").stdout.splitlines()
    )
    assert shown["CNTR_TARGET"] == container
    assert shown["CNTR_BASE_DIR"] == "/var/lib/cntr"
    assert shown["A"] == "1=2"
    assert "APP_MODE" not in shown, "the container's variables can be read, but are set only if named"
    told = cntr("attach", container, "-e", "APP_MODE", "--", "sh", "-c", "cat /run/cntr/environ; printenv APP_MODE")
    assert "APP_MODE=production" in told.stdout.splitlines()
    assert told.stdout.splitlines()[-1] == "production"
    assert shown["PATH"] == os.environ["PATH"], "the tools' own"


def test_the_errors_of_a_dead_target_name_it(container):
    with SlimContainer("short") as short:
        pid = str(short.pid)
    assert f"pid {pid}: no such process" in complaint(cntr("attach", pid))[0]


def test_words_for_the_user_that_cannot_be_printed(container):
    """Notes and reports of a session, and the command's own messages, which are then incomplete."""
    with open("/dev/full", "wb") as full:
        for script, status in (("exit 3", 3), ("echo lost >&2; exit 3", 125)):
            words = ["attach", "--reason", "full", "-v", "--no-cgroup", container, "--", "sh", "-c", script]
            done = subprocess.run([*CNTR, *words], stderr=full, stdout=subprocess.PIPE, env=ENVIRONMENT, check=False)
            assert (done.returncode, done.stdout) == (status, b""), script
