"""The options about sessions: listing, recording."""

from __future__ import annotations

from cntr.cli.options_attach import JSON
from cntr.cli.parser import Option, Subcommand

SESSIONS = Subcommand(
    "sessions",
    "[ACTION] [ID]",
    "open sessions: list (default); end one, like a hang-up of its terminal",
    (JSON,),
    "cntr sessions\ncntr sessions --json\ncntr sessions end 3f2a",
)
REPLAY = Subcommand(
    "replay",
    "FILE",
    "play a recording of --record; output that does more than display is dropped",
    (
        Option("--speed", "N", "speed factor (default: 1)"),
        Option("--idle-limit", "SECONDS", "longest pause in seconds (default: 3)"),
    ),
    "cntr replay web.cast\ncntr replay --speed 4 --idle-limit 1 web.cast",
)
