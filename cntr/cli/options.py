"""The command line as one table: the parser, ``--help``, the man page and shell completion all come from it."""

from __future__ import annotations

from cntr.cli import parser
from cntr.cli.options_files import COPY, ENV, JSON, REASON, SLIM, TIMEOUT
from cntr.cli.options_ports import FORWARD, SESSION_SOCKETS
from cntr.cli.options_sessions import RECORD, REPLAY, SESSIONS
from cntr.cli.parser import Option, Parsed, Subcommand

HELP = Option("-h --help", "", "show this help")
DEBUG = Option("--debug", "", "show a traceback with an error")
TRANSPORT = Option(
    "--transport",
    "KIND",
    "how the tools' tree comes in: mount (native speed, kernel ≥ 5.2), fuse (CntrFS)",
    choices="auto mount fuse",
)
BINDING = Option("--binding", "NAME", "FUSE binding: devfuse (cntr's own) or pyfuse3", choices="auto devfuse pyfuse3")
READ_ONLY = Option("--read-only", "", "nothing can be changed through the mount")
USER = Option(
    "-u --user", "USER", "run as USER[:GROUP], by the container's names or by number (default: the container's)"
)
WORKDIR = Option("-w --workdir", "DIR", "start in DIR (default: / of a session, the container's own for exec)")
NETWORK = Option(
    "--network",
    "KIND",
    "for a stopped container: only lo (default), the host's, or the container's if it exists",
    choices="none host container",
)
WRITE = Option("--write", "", "keep changes in a stopped container's layer; it must not be started meanwhile")
INTERACTIVE = Option("-i --interactive", "", "no effect: input is always passed through (accepted for compatibility)")
TTY = Option("-t --tty", "", "no effect: the session has a terminal if the caller has one (accepted for compatibility)")
NO_CGROUP = Option("--no-cgroup", "", "stay in the caller's cgroup; only the container's devices can be opened")
VERBOSE = Option("-v --verbose", "", "report what could not be inherited")
SECCOMP = Option("--seccomp", "", "also apply the container's seccomp filters, which break many tools")
NO_SECCOMP = Option(
    "--no-seccomp", "", "run without the container's seccomp filters; by default it is an error if they cannot be read"
)
PRIVILEGED = Option("--privileged", "", "keep the host root's capabilities, user namespace and security label")
COMMANDS = (
    Subcommand(
        "attach",
        "TARGET",
        "a shell with your tools in a container's namespaces; the container is at /var/lib/cntr",
        (
            Option(
                "--tools",
                "SRC",
                "where the tools come from: host (default: this machine's programs), host:all (its whole tree, as it is), "
                "another container, an image (image:NAME, archive:FILE, oci:DIR), or the directory of a root filesystem",
            ),
            Option(
                "--share",
                "PATH[:rw]",
                "bring in a file or directory of this machine, read-only or writable",
                repeat=True,
            ),
            *SESSION_SOCKETS,
            TRANSPORT,
            BINDING,
            Option("--read-only", "", "with host:all: mount the whole tools' tree read-only"),
            Option("--force", "", "attach even if that is refused as unsafe"),
            USER,
            ENV,
            WORKDIR,
            INTERACTIVE,
            TTY,
            PRIVILEGED,
            NETWORK,
            WRITE,
            SECCOMP,
            NO_CGROUP,
            REASON,
            TIMEOUT,
            RECORD,
            VERBOSE,
        ),
        "cntr attach web                        a shell ($SHELL) beside the container `web`\n"
        "cntr attach web -- gdb -p 1            debug its process with your gdb\n"
        "cntr attach docker:3f2a -- strace -fp 1\n"
        "cntr attach web --share .:rw           bring this directory along, to write\n"
        "cntr attach web --tools toolbox        tools from the container `toolbox`\n"
        "cntr attach image:web:1 -- ls /var/lib/cntr/etc",
        takes_command=True,
    ),
    Subcommand(
        "exec",
        "[TARGET]",
        "the container's own command in its own root; in a session TARGET can be left out",
        (
            USER,
            ENV,
            WORKDIR,
            INTERACTIVE,
            TTY,
            PRIVILEGED,
            NO_SECCOMP,
            NETWORK,
            WRITE,
            NO_CGROUP,
            REASON,
            TIMEOUT,
            RECORD,
            VERBOSE,
        ),
        "cntr exec web -- /app --version\ncntr exec                              /bin/sh of the container, from inside a session",
        takes_command=True,
    ),
    Subcommand(
        "run",
        "TARGET",
        "a container's or image's own entrypoint, in a stand-in; CMD is a tool to run it under, such as strace",
        (ENV, NETWORK, WRITE, NO_CGROUP, REASON, TIMEOUT, RECORD, VERBOSE),
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
    return parser.parse(argv, COMMANDS, (HELP, DEBUG))
