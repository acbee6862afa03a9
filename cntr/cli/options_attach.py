"""The options of ``cntr attach``, including those that it shares with other commands and those for
the caller's sockets.

An attach loads only this table.
"""

from __future__ import annotations

from cntr.cli.parser import Option, Subcommand

HELP = Option("-h --help", "", "show this help")
DEBUG = Option("--debug", "", "show a traceback with an error")
TRANSPORT = Option(
    "--transport",
    "KIND",
    "how the tools' tree comes in: mount (native speed, kernel ≥ 5.2), fuse (CntrFS)",
    choices="auto mount fuse",
)
BINDING = Option("--binding", "NAME", "FUSE binding: devfuse (cntr's own) or pyfuse3", choices="auto devfuse pyfuse3")
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
JSON = Option("--json", "", "machine-readable output; JSON lines on stderr report operations longer than a second")
ENV = Option("-e --env", "K=V", "set a variable; K alone passes the caller's on", repeat=True)
REASON = Option("--reason", "TEXT", "reason for the session's record; a policy may require it (docs/audit.md)")
TIMEOUT = Option("--timeout", "TIME", "end the session after this time (30s, 30m, 8h), with a warning a minute before")

RECORD = Option(
    "--record", "FILE", "record the session's output, never its input, in a new FILE (asciicast v2: `cntr replay`)"
)
PROCESS = (USER, ENV, WORKDIR, INTERACTIVE, TTY, PRIVILEGED)
RECORDED = (REASON, TIMEOUT, RECORD, VERBOSE)
SESSION_SOCKETS = (
    Option("-X --x11", "", "show the session's windows on your display, like ssh -Y"),
    Option("-A --agent", "", "your ssh agent"),
    Option("--dbus", "", "your session bus"),
    Option("--wayland", "", "your Wayland compositor"),
    Option(
        "--socket",
        "PATH[:AS]",
        "another Unix socket of yours, at its own path in the session's /run, /tmp or home, or at AS",
        repeat=True,
    ),
    Option(
        "--forward", "", "let `cntr forward` in the session use ports of this machine's loopback, in both directions"
    ),
)
ATTACH = Subcommand(
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
        *PROCESS,
        NETWORK,
        WRITE,
        SECCOMP,
        NO_CGROUP,
        *RECORDED,
    ),
    "cntr attach web                        a shell ($SHELL) beside the container `web`\n"
    "cntr attach web -- gdb -p 1            debug its process with your gdb\n"
    "cntr attach docker:3f2a -- strace -fp 1\n"
    "cntr attach web --share .:rw           bring this directory along, to write\n"
    "cntr attach web --tools toolbox        tools from the container `toolbox`\n"
    "cntr attach image:web:1 -- ls /var/lib/cntr/etc",
    takes_command=True,
)
COMMON = (HELP, DEBUG)
