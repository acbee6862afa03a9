"""--record and replay: recordings hold the output of a session and no input, and replay sends a terminal nothing
harmful.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cntr.audit import cast, replay
from cntr.errors import CntrError
from tests.nest import busybox
from tests.nest.tty import CNTR, Terminal


@pytest.fixture(scope="module")
def container():
    if os.geteuid() != 0:
        pytest.skip("needs root: hand-made containers")
    with busybox.BusyboxContainer("recorded") as made:
        yield made


def read(path):
    """(head, [(kind, text)]) of a recording in asciicast v2."""
    head, *events = [json.loads(line) for line in path.read_text().splitlines()]
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    assert all(
        isinstance(at, (int, float)) and at >= 0 and kind in "or" and isinstance(text, str) for at, kind, text in events
    )
    assert head["version"] == 2
    assert all(isinstance(head[key], int) and head[key] > 0 for key in ("width", "height", "timestamp"))
    assert all(isinstance(value, str) for value in head["env"].values())
    return head, [(kind, text) for _, kind, text in events]


def shown(events):
    return "".join(text for kind, text in events if kind == "o")


def test_a_terminals_session_is_kept_with_its_sizes_and_without_what_was_typed_blindly(container, tmp_path):
    path = tmp_path / "s.cast"
    with Terminal(*CNTR, "attach", str(container.pid), "--record", str(path), "--", "/bin/bash", "--norc") as terminal:
        terminal.type("PS1='(s)# '\n")
        terminal.wait_for(r"\(s\)# '\r?\n")
        terminal.wait_for(r"\(s\)# ")
        terminal.type("stty -echo; echo off-$((40+2)); read secret; stty echo\n")
        terminal.wait_for("off-42")  # bash's own `read -s` turns the echo off at a moment that nobody sees
        terminal.type("hunter2\n")
        terminal.wait_for(r"\(s\)# ")
        terminal.resize(31, 97)
        terminal.type("stty size; echo \u00e4\u00f6-$((40+2))\n")
        terminal.wait_for("31 97")
        terminal.wait_for("-42")
        assert "-42" in shown(read(path)[1])  # the file already has it while the session runs
        terminal.type("exit\n")
        terminal.process.wait(10)
    head, events = read(path)
    assert (head["width"], head["height"]) == (80, 24)
    assert ("r", "97x31") in events
    assert "\u00e4\u00f6-42" in shown(events)
    assert "hunter2" not in path.read_text()
    assert os.stat(path).st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("command", ["attach", "exec"])
def test_so_is_one_without_a_terminal_whose_streams_stay_two(container, tmp_path, command):
    path = tmp_path / "s.cast"
    script = "read x; echo out-$x; echo err >&2; printf '\\303'; sleep 0.2; printf '\\244\\n'; exit 7"
    arguments = (command, str(container.pid), "--record", str(path), "--", "/bin/sh", "-c", script)
    done = busybox.run(*arguments, input="typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out-typed\n\u00e4\n", "err\n")
    head, events = read(path)
    assert (head["width"], head["height"]) == (80, 24)
    assert head["command"].startswith(f"cntr {command} {container.pid}")
    assert "\u00e4" in shown(events)
    assert "\ufffd" not in shown(events)
    assert sorted(shown(events).split()) == ["err", "out-typed", "\u00e4"]


def test_a_recording_is_a_new_file_of_the_callers(container, tmp_path):
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere")
    for path, word in ((there, "File exists"), (link, "File exists"), (tmp_path / "none/x", "No such file")):
        done = busybox.run("attach", str(container.pid), "--record", str(path), "--", "true")
        assert word in busybox.one_line_and_hint(done)
    assert there.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    # A session that could not start leaves no recording.
    done = busybox.run(
        "attach", str(container.pid), "--record", str(tmp_path / "new"), "--share", "/no/such/path", "--", "true"
    )
    assert done.returncode == 125
    assert not (tmp_path / "new").exists()


def test_behind_sudo_it_is_made_with_the_rights_of_the_caller(container, tmp_path):
    """If users with no right but `sudo cntr` could create a file with their text anywhere, they could become root."""
    for above in (tmp_path, *tmp_path.parents):
        if above != above.parent:
            above.chmod(above.stat().st_mode | 0o711)
    roots, own = tmp_path / "roots", tmp_path / "own"
    for directory in (roots, own):
        directory.mkdir(mode=0o755)
    os.chown(own, 1000, 1000)
    for directory, allowed in ((roots, False), (own, True)):
        file = directory / "new.cast"
        words = ("--record", str(file), str(container.pid), "--", "echo", "$(id)")
        done = busybox.run("attach", *words, env={"SUDO_UID": "1000", "SUDO_GID": "1000", "SUDO_USER": "u"})
        assert (done.returncode, file.exists()) == ((0, True) if allowed else (125, False)), done
    assert "$(id)" in file.read_text()
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (1000, 1000, 0o600)


def test_a_full_disk_or_file_stops_the_recording_and_not_the_session(container, tmp_path, monkeypatch):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], check=True)
    try:
        path = tmp_path / "s.cast"
        script = "i=0; while [ $i -lt 600 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done"
        done = busybox.run("attach", str(container.pid), "--record", str(path), "--", "sh", "-c", script)
        assert (done.returncode, done.stdout.count("\n")) == (0, 600)
        assert done.stderr == f"cntr: --record {path}: the recording is incomplete: No space left on device\n"
        read(path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    monkeypatch.setattr(cast, "LIMIT", 100)
    recorder, said = cast.Recorder(str(tmp_path / "small"), []), []
    for _ in range(9):
        recorder.output(1, b"0123456789")
    recorder.close(said.append, unused=False)
    assert len(said) == 1
    assert len(read(tmp_path / "small")[1]) == 3


# --- replay ------------------------------------------------------------------------------------------------------------

HEAD = '{"version": 2, "width": 80, "height": 24, "timestamp": 1}\n'


def written(tmp_path, *events, head=HEAD):
    path = tmp_path / "r.cast"
    path.write_text(head + "".join(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events))
    return str(path)


def test_replay_shows_it_at_its_pace_or_faster(tmp_path):
    path = written(
        tmp_path, [0.0, "o", "a"], [0.1, "i", "typed"], [0.2, "o", "b\n"], [300, "o", "c\n"], [300.2, "r", "9x9"]
    )
    begun = time.monotonic()
    done = busybox.run("replay", path, "--idle-limit", "0.2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ab\nc\n", "")
    assert time.monotonic() - begun >= 0.4
    assert busybox.run("replay", path, "--speed", "1000").stdout == "ab\nc\n"
    for wrong in ("0", "-1", "nan", "inf", "x", "1e-320"):
        assert "not a number" in busybox.one_line_and_hint(busybox.run("replay", path, "--speed", wrong))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain \u00e4\u4e2d\U0001f600\r\n\tx\b", True),
        ("\x1b[1;31mred\x1b[0m\x1b[38;2;1;2;3m\x1b[K\x1b[2J\x1b[10;20H\x1b[A\x1b[3L\x1b[2;20r\x1b[s\x1b[u", True),
        ("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[4h\x1b(0lqk\x1b(B\x1b7\x1b8\x1bM\x1b[2 q", True),
        ("\x07", False),
        ("\x05", False),  # ENQ
        ("\x1b[c", None),
        ("\x1b[6n", None),
        ("\x1b[?2004h", None),  # bracketed paste
        ("\x1b[?1000h", None),  # the mouse
        ("\x1b[?1049;1003h", None),
        ("\x1b[21t", None),  # report the title
        ("\x1b[5i", None),  # print
        ("\x1b[>4;2m", None),
        ("\x1b[!p", None),
        ("\x1b[999999999b", None),
        ("\x1bc", None),
        ("\x1b]52;c;Y3VybCBldmlsfHNo\x07", None),  # the clipboard
        ("\x1b]0;title\x1b\\", None),
        ("\x1b]8;;http://x\x1b\\", None),
        ('\x1bP$q"p\x1b\\', None),
        ("\x1b_Gi=1;AAAA\x1b\\", None),
        ("\x1b^x\x1b\\", None),
        ("\x9d52;c;eA==\x9c", None),
        ("\x9b6n", "6n"),
        ("\x1b[3\x1b[6n", None),  # one interrupted by another
        ("\x1b#8", None),
        ("\ud800", False),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
def test_a_terminal_is_told_what_to_show_and_nothing_else(text, kept, pieces):
    screen = replay.Screen()
    parts = list(text) if pieces else [text]
    out = "".join(screen.filtered(part) for part in [*parts, "."])
    assert out == {True: f"{text}.", False: ".", None: "."}.get(kept, f"{kept}.")


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*"\x1b[]P_^X?;0159hlmnctrHq \\\x07\x9b\x9c\x9d\x18a!$(B0", "\x1b[", "\x1b]", "\x1b\\", "\x1b[?"]
        ),
        max_size=40,
    )
)
def test_what_goes_out_is_drawing_however_it_came_in(pieces):
    screen = replay.Screen()
    out = "".join(screen.filtered(piece) for piece in pieces)
    rest = out
    for sequence in replay_sequences(out):
        rest = rest.replace(sequence, "", 1)
        assert sequence[1] in "[78DEM()*+", sequence
        if sequence[1] == "[":
            assert sequence[-1] in replay.DRAWING | set("hlq"), sequence
            assert not set(sequence[2:-1]) - set("0123456789;? "), sequence
    assert "\x1b" not in rest
    assert not set(rest) & set("\x05\x07\x9b\x9c\x9d")
    whole = replay.Screen()
    assert whole.filtered("".join(pieces)) == out
    assert set(screen.modes) <= {f"?{mode}" for mode in replay.MODES} | set(replay.PLAIN_MODES)


def replay_sequences(text):
    import re

    return re.findall(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()*+].|[^\[()*+])", text)


def test_the_terminal_is_given_back_as_it_was():
    screen = replay.Screen()
    assert screen.restoring() == replay.PLAIN
    screen.filtered("\x1b[?1049;25h\x1b[?25l\x1b[4h\x1b[2;5r\x1b[?7l\x1b[?7h")
    assert screen.restoring() == "\x1b[4l\x1b[?1049l\x1b[?25h\x1b7\x1b[r\x1b8" + replay.PLAIN
    screen = replay.Screen()
    screen.filtered("\x1b[5 q")
    assert screen.restoring() == "\x1b[0 q" + replay.PLAIN


@pytest.mark.parametrize("start", ["\x1b]52;", "\x1bP", "\x1b[", "\x1b(", "\x9d"])
def test_a_sequence_without_end_is_not_read_again_with_each_piece(start):
    screen = replay.Screen()
    for piece in [start, *["1" * 100] * 1000]:
        screen.filtered(piece)
        assert len(screen.pending) <= replay.SEQUENCE_LIMIT
    assert screen.filtered("\x1b\\\x1b[1mseen") == "\x1b[1mseen"


@pytest.mark.parametrize(
    ("head", "events", "word"),
    [
        ("", [], "not a recording"),
        ("[]\n", [], "not a recording"),
        ('{"version": 3}\n', [], "but v3"),
        ("\x7fELF\n", [], "line 1"),
        (HEAD, [[0, "o"]], "line 2"),
        (HEAD, [[0, "o", "x"], [1, "o", 7]], "line 3"),
        (HEAD, ['[NaN, "o", "x"]'], "line 2"),
        (HEAD, [[5, "o", ""], [4, "o", ""]], "line 3"),
        (HEAD, ['[1e999, "o", "x"]'], "line 2"),
        (HEAD, ["[" * 100000], "line 2"),
        (HEAD, [f'[1{"0" * 400}, "o", "x"]'], "line 2"),
        (HEAD, ['[1e18, "o", "x"]'], "line 2"),  # above this, rounding would change the pause
        (HEAD, ["garbage", [1, "o", "x"]], "line 2"),
    ],
)
def test_an_invalid_recording_is_reported_with_the_line(tmp_path, head, events, word):
    with open(written(tmp_path, *events, head=head), "rb") as stream, pytest.raises(CntrError, match=word):
        list(replay.events(stream, "r.cast"))


def test_the_last_line_of_a_killed_session_may_be_half():
    stream = io.BytesIO(HEAD.encode() + b'[0, "o", "x"]\n[0.5, "o", "ha')
    assert list(replay.events(stream, "x")) == [(0.0, "o", "x")]


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f")
    assert "not a regular file" in busybox.one_line_and_hint(busybox.run("replay", str(tmp_path / "f")))
