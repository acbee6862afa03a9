"""The command line as one table: the parser, ``--help``, the man page and shell completion all come from it."""

from __future__ import annotations

from cntr.cli import parser
from cntr.cli.options_attach import (
    ATTACH,
    BINDING,
    COMMON,
    ENV,
    JSON,
    NETWORK,
    NO_CGROUP,
    NO_SECCOMP,
    PROCESS,
    REASON,
    RECORDED,
    WRITE,
)
from cntr.cli.options_files import COPY, SLIM
from cntr.cli.options_ports import FORWARD
from cntr.cli.options_sessions import REPLAY, SESSIONS
from cntr.cli.parser import Option, Parsed, Subcommand

READ_ONLY = Option("--read-only", "", "nothing can be changed through the mount")
COMMANDS = (
    ATTACH,
    Subcommand(
        "exec",
        "[TARGET]",
        "the container's own command in its own root; in a session TARGET can be left out",
        (*PROCESS, NO_SECCOMP, NETWORK, WRITE, NO_CGROUP, *RECORDED),
        "cntr exec web -- /app --version\ncntr exec                              /bin/sh of the container, from inside a session",
        takes_command=True,
    ),
    Subcommand(
        "run",
        "TARGET",
        "a container's or image's own entrypoint, in a stand-in; CMD is a tool to run it under, such as strace",
        (ENV, NETWORK, WRITE, NO_CGROUP, *RECORDED),
        "cntr run web                           the entrypoint of `web`, whether it has crashed or not\n"
        "cntr run web -- strace -f              the same, under your strace\n"
        "cntr run image:web:1 --network host",
        takes_command=True,
    ),
    Subcommand(
        "ps",
        "",
        "running containers of every engine on this machine",
        (
            Option("-a --all", "", "stopped containers too"),
            Option(
                "--host", "HOSTS", "on other machines, comma-separated, all asked at once by ssh: [user@]host, ssh://…"
            ),
            JSON,
        ),
        "cntr ps\ncntr ps --all\ncntr ps --json\ncntr ps --host alpha,admin@beta,ssh://gamma:2222",
    ),
    Subcommand(
        "inspect",
        "TARGET",
        "what attach would take over from a container or not, property by property, and why",
        (JSON,),
        "cntr inspect web\ncntr inspect pid:4711 --json\n"
        "cntr inspect image:web:1               its entrypoint, and what is missing to start it",
    ),
    COPY,
    FORWARD,
    Subcommand(
        "mount",
        "SOURCE MOUNTPOINT",
        "show the directory SOURCE at MOUNTPOINT through CntrFS, until it is unmounted",
        (
            BINDING,
            READ_ONLY,
            Option("-f --foreground", "", "serve in the foreground; Ctrl-C unmounts"),
            Option(
                "--cache",
                "POLICY",
                "what the kernel caches: auto (everything, told of changes), strict (asks each time), none",
                choices="auto strict none",
            ),
            REASON,
            Option("--timeout", "TIME", "unmount after this time (30s, 30m, 8h)"),
            Option("-o --options", "OPTS", "mount options, comma-separated: ro, noatime, io_uring, …", repeat=True),
            Option("-v --verbose", "", "say which features the mount lacks, and why"),
        ),
        "cntr mount /srv/tools /mnt\numount /mnt",
    ),
    Subcommand(
        "cache",
        "[ACTION] [IMAGE]",
        "images unpacked for --tools and as targets: list (default), clear",
        (JSON,),
        "cntr cache\ncntr cache clear                       all that no session uses\ncntr cache clear toolbox:1",
    ),
    SLIM,
    SESSIONS,
    REPLAY,
    Subcommand("doctor", "", "what this machine lacks, per feature, with the fix", (JSON,), "cntr doctor"),
    Subcommand(
        "completion",
        "SHELL",
        "print a completion script for bash, zsh or fish",
        (),
        "cntr completion bash > /etc/bash_completion.d/cntr",
    ),
)


def parse(argv: list[str]) -> Parsed:
    """Parse the command line after the program's name. Raises UsageError."""
    return parser.parse(argv, COMMANDS, COMMON)
