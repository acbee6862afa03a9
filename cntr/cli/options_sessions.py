"""The options about sessions: time limits, listing, recording."""

from __future__ import annotations

from cntr.cli.options_files import JSON
from cntr.cli.parser import Option, Subcommand

RECORD = Option(
    "--record", "FILE", "keep what the session shows, never what is typed, in a new FILE (asciicast v2: `cntr replay`)"
)
SESSIONS = Subcommand(
    "sessions",
    "[ACTION] [ID]",
    "sessions that are open now: list (default); end, as a hang-up of its terminal would",
    (JSON,),
    "cntr sessions\ncntr sessions --json\ncntr sessions end 3f2a",
)
REPLAY = Subcommand(
    "replay",
    "FILE",
    "show a recording of --record again; whatever a terminal does with output but showing it is left out",
    (
        Option("--speed", "N", "N times as fast (default: 1)"),
        Option("--idle-limit", "SECONDS", "no pause is longer (default: 3)"),
    ),
    "cntr replay web.cast\ncntr replay --speed 4 --idle-limit 1 web.cast",
)
