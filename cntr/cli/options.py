"""The command line as one table: the parser, ``--help``, the man page and shell completion all come from it.

Our own and not argparse: importing that takes 10–13 ms, half of what a whole attach takes (``python -X importtime``).
"""

from __future__ import annotations

from cntr.errors import UsageError, printable


class Option:
    """One option: its names, its value's name ("" for a flag), the choices, and what it does."""

    __slots__ = ("choices", "help", "key", "names", "repeat", "value")

    def __init__(self, names: str, value: str, help: str, *, choices: str = "", repeat: bool = False) -> None:
        """names: e.g. ``-e --env``; the last one gives the key; choices: words the value must be one of."""
        self.names, self.value, self.help, self.repeat = names.split(), value, help, repeat
        self.choices = choices.split()
        self.key = self.names[-1].lstrip("-").replace("-", "_")


class Command:
    """One command: its positional words, options, an example or two, and where one line of help is not enough, details."""

    __slots__ = ("details", "examples", "help", "name", "options", "positional", "takes_command")

    def __init__(
        self,
        name: str,
        positional: str,
        help: str,
        options: tuple[Option, ...],
        examples: str,
        *,
        takes_command: bool = False,
        details: str = "",
    ) -> None:
        """positional: names of the words it needs, ``[NAME]`` for one it can do without; takes_command: ``-- CMD…`` follows."""
        self.name, self.positional, self.help, self.options = name, positional.split(), help, options
        self.examples, self.takes_command, self.details = examples, takes_command, details


class Parsed:
    """What the user typed: the command, {key: value}, the positional words, the words after ``--``, and the line itself."""

    __slots__ = ("argv", "command", "line", "values", "words")

    def __init__(self, command: Command) -> None:
        """Empty."""
        self.command = command
        self.values: dict[str, object] = {}
        self.words: list[str] = []
        self.argv: list[str] = []
        self.line: list[str] = []

    def flag(self, key: str) -> bool:
        """Whether a flag was given."""
        return key in self.values

    def text(self, key: str, default: str = "") -> str:
        """The value of an option."""
        value = self.values.get(key, default)
        return str(value)

    def texts(self, key: str) -> list[str]:
        """The values of a repeatable option."""
        value = self.values.get(key, [])
        return list(value) if isinstance(value, list) else []


HELP = Option("-h --help", "", "show this help")
DEBUG = Option("--debug", "", "show a traceback with an error")
JSON = Option("--json", "", "machine-readable output")
TRANSPORT = Option(
    "--transport",
    "KIND",
    "how the tools' tree comes in: mount (native speed, kernel ≥ 5.2), fuse (CntrFS)",
    choices="auto mount fuse",
)
BINDING = Option("--binding", "NAME", "who speaks FUSE: devfuse (our own) or pyfuse3", choices="auto devfuse pyfuse3")
READ_ONLY = Option("--read-only", "", "nothing can be changed through the mount")
USER = Option(
    "-u --user", "USER", "run as USER[:GROUP], by the container's names or by number (default: the container's)"
)
ENV = Option("-e --env", "K=V", "set a variable; K alone passes the caller's on", repeat=True)
WORKDIR = Option("-w --workdir", "DIR", "start in DIR (default: / of a session, the container's own for exec)")
NETWORK = Option(
    "--network",
    "KIND",
    "of what does not run: none but lo (default), the host's, or the container's where it is there",
    choices="none host container",
)
WRITE = Option(
    "--write", "", "keep the changes in the layer of a container that does not run; it must not be started meanwhile"
)
INTERACTIVE = Option("-i --interactive", "", "nothing: input always goes through (accepted as other tools have it)")
TTY = Option("-t --tty", "", "nothing: there is a terminal where the caller has one (accepted as other tools have it)")
NO_CGROUP = Option("--no-cgroup", "", "stay in the caller's cgroup")
VERBOSE = Option("-v --verbose", "", "say what could not be inherited")
SECCOMP = Option("--seccomp", "", "take on the container's seccomp filters too: many tools need what they forbid")
NO_SECCOMP = Option(
    "--no-seccomp", "", "without the container's seccomp filters; else it fails where they can't be had"
)
PRIVILEGED = Option("--privileged", "", "keep the host root's capabilities, user namespace and security label")

COPYING = """One of SRC and DST is TARGET:PATH, a path from the container's root, with or without its first slash. The first colon ends
TARGET, after a prefix (docker:web:/x, pid:42:/x) the next one; after unit: and command: it is the first `:/`. The other is a path of
the host; one that holds a colon begins with ./ or /. The container's tmpfs mounts and volumes are seen, and a paused container can
be copied from and to.

SRC a file:       it gets the name DST, or goes into DST where that is a directory. DST/ must be one.
SRC a directory:  it goes into DST; where there is no DST yet, it is copied as DST. SRC/. is what is in it, without itself.

Kept are modes, times (ns), symbolic and hard links, holes, and user.* attributes. What is copied belongs to the caller, in the
container to its root. A file of the same name is replaced when the new one is whole, a symbolic link in its place is not followed;
directories that were there keep their mode, owner and other files. Devices, sockets and FIFOs are named and left out,
/proc, /sys and the like below SRC are left out. Exit status 1: something was not copied, and was named.

/dev/stdin, /dev/stdout and /dev/fd/N of the host are the caller's open files: read to their end, or written to. Any other link into
/proc, to a device, a socket or a FIFO is neither replaced nor copied when SRC or DST names it.

With --archive owners are kept: what the container calls root of its user namespace is that namespace's owner on the host, and back.
An id of the host that the namespace does not map keeps its number in the container. Set-id bits and file capabilities go into a
container and never come out of one."""

SLIMMING = """TARGET is an image or a container of Docker, Podman or containerd (docker:NAME where several have it), archive:FILE
(docker save, podman save), oci:DIR or dir:ROOT. The image runs in its engine, without a network of its own, while what it uses is recorded,
from before its first instruction; nothing is put into it. `-- CMD…` is a command of this machine: it runs in the container's
network namespace, where the container is 127.0.0.1, and is tried again until it succeeds or --timeout is over; CNTR_SLIM_PID and
CNTR_SLIM_NAME say which container it is. --http, --exec and CMD may be given together, Ctrl-C ends the recording. With none of
them the image is started, its ports are asked once, and the recording ends when nothing new has been opened for two seconds.

What rules add has its reason (--explain). The slim image must then do the same exercise on CntrFS, where each file that it misses
is added, and once more in the engine. If it does not, the status is 125 and no archive is written. What the exercise did not ask
for may be missing.

`cntr slim diff TARGET OTHER [OVER]` compares two images file by file, OVER laid over OTHER: status 0 if they are the same, 1 if
not."""

SLIM_OPTIONS = (
    Option("-o --output", "FILE", "the archive, Docker's and OCI's at once (default without --load: slim.tar)"),
    Option("-t --tag", "REF", "what the slim image is called (default: NAME:TAG-slim)"),
    Option("--load", "", "load it into the engine that has the image"),
    Option("--http", "[HOST:]PORT[/PATH]", "the exercise: GET it, and what its page names", repeat=True),
    Option("--exec", "WORDS", "the exercise: a program of the container's own, run in it", repeat=True),
    Option("--for", "TIME", "record for so long: 30s, 5m, 2h"),
    Option("--timeout", "TIME", "how long the image may take until it answers (default: 60s)"),
    Option("--watch", "", "look on while the container TARGET runs, and leave it alone; Ctrl-C ends it"),
    Option("--accesses", "FILE", "take what FILE says was used before, and save what was used in all"),
    Option(
        "--recorder",
        "KIND",
        "fanotify (root, the engine's own run), cntrfs (rootless, archives; sees stat too)",
        choices="auto fanotify cntrfs",
    ),
    Option(
        "--verify",
        "WHERE",
        "prove the slim image on CntrFS, where what is missing is added, and in the engine (default: all)",
        choices="all cntrfs engine none",
    ),
    Option("--keep", "GLOB", "keep these paths too: * in a name, ** across; a directory is all below", repeat=True),
    Option("--drop", "GLOB", "leave these files out, whatever says otherwise", repeat=True),
    Option("--app", "DIR", "the application is in DIR: keep all of it", repeat=True),
    Option("--keep-shell", "", "keep a shell and some twenty tools"),
    Option("--package-db", "KIND", "dpkg's and apk's records (default: filtered)", choices="filtered full none"),
    Option("--licences", "", "keep the copyright files of kept packages"),
    Option("--explain", "PATH", "say why PATH is kept, or left out", repeat=True),
    Option("--report", "FILE", "write a report: .html, one page with charts, or .json, everything"),
    Option("--fat", "FILE", "write the rest as an archive too; proved to be the image together with the slim one"),
    Option("--compress", "KIND", "of the archive's layer (default: gzip)", choices="gzip zstd none"),
    Option("--network", "NAME", "the engine's network to run it in: none (default), host, container:NAME, …"),
    ENV,
    Option("-v --volume", "SPEC", "a volume for the runs, as the engine takes it", repeat=True),
    Option("--cmd", "WORDS", "run this instead of the image's Cmd"),
    Option("--entrypoint", "WORDS", "run this instead of the image's Entrypoint"),
    JSON,
)

COMMANDS = (
    Command(
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
                "bring in a file or directory of this machine, read-only or to write",
                repeat=True,
            ),
            TRANSPORT,
            BINDING,
            Option("--read-only", "", "with host:all: mount the whole tools' tree read-only"),
            Option("--force", "", "attach all the same where that is refused as unsafe"),
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
    Command(
        "exec",
        "[TARGET]",
        "the container's own command in its own root; in a session TARGET can be left out",
        (USER, ENV, WORKDIR, INTERACTIVE, TTY, PRIVILEGED, NO_SECCOMP, NETWORK, WRITE, NO_CGROUP, VERBOSE),
        "cntr exec web -- /app --version\ncntr exec                              /bin/sh of the container, from inside a session",
        takes_command=True,
    ),
    Command(
        "run",
        "TARGET",
        "what a container or an image would run itself, in a stand-in; CMD is a tool of yours before it, as strace",
        (ENV, NETWORK, WRITE, NO_CGROUP, VERBOSE),
        "cntr run web                           the entrypoint of `web`, whether it has crashed or not\n"
        "cntr run web -- strace -f              the same, under your strace\n"
        "cntr run image:web:1 --network host",
        takes_command=True,
    ),
    Command(
        "ps",
        "",
        "running containers of every engine on this machine",
        (Option("-a --all", "", "those that do not run, too"), JSON),
        "cntr ps\ncntr ps --all\ncntr ps --json",
    ),
    Command(
        "inspect",
        "TARGET",
        "what attach would take from a container, property by property, and what not and why",
        (JSON,),
        "cntr inspect web\ncntr inspect pid:4711 --json\n"
        "cntr inspect image:web:1               its entrypoint, and what is missing to start it",
    ),
    Command(
        "cp",
        "SRC DST",
        "copy files between the host and a container; nothing is needed in its image",
        (
            Option(
                "-a --archive", "", "keep owner, group and ACLs too; into a container set-id bits and file capabilities"
            ),
            Option("-L --follow-link", "", "where SRC is a symbolic link, copy what it names"),
        ),
        "cntr cp web:/var/log/app.log .         a file out of the container\n"
        "cntr cp ./conf/. docker:web:/etc/app   what is in conf into /etc/app\n"
        "cntr cp web:/run/state /tmp            a directory, from a tmpfs too: /tmp/state",
        details=COPYING,
    ),
    Command(
        "mount",
        "SOURCE MOUNTPOINT",
        "show the directory SOURCE at MOUNTPOINT through CntrFS, until it is unmounted",
        (
            BINDING,
            READ_ONLY,
            Option("-f --foreground", "", "serve in this process' foreground; Ctrl-C unmounts"),
            Option(
                "--cache",
                "POLICY",
                "what the kernel keeps: auto (all, told of changes), strict (asks each time), none",
                choices="auto strict none",
            ),
            Option("-o --options", "OPTS", "mount options, comma-separated: ro, nosuid, noatime, …", repeat=True),
        ),
        "cntr mount /srv/tools /mnt\numount /mnt",
    ),
    Command(
        "cache",
        "[ACTION] [IMAGE]",
        "images unpacked for --tools and as targets: list (default), clear",
        (JSON,),
        "cntr cache\ncntr cache clear                       all that no session uses\ncntr cache clear toolbox:1",
    ),
    Command(
        "slim",
        "TARGET [OTHER] [OVER] [LAST]",
        "split an image: what runs into a slim one, the rest left to be had when it is needed",
        SLIM_OPTIONS,
        "cntr slim nginx:1 --http 80 --load     record, complete, prove, load as nginx:1-slim\n"
        "cntr slim app:2 -o app.tar -- curl -f http://127.0.0.1:8080/login\n"
        "cntr slim podman:db -e PW=x --exec 'psql -U postgres -c \"select 1\"'\n"
        "cntr slim web --watch --accesses web.txt    what the running container `web` uses, until Ctrl-C\n"
        "cntr slim diff nginx:1 archive:slim.tar     what was left out",
        takes_command=True,
        details=SLIMMING,
    ),
    Command("doctor", "", "what this machine lacks, per feature, with the fix", (JSON,), "cntr doctor"),
    Command(
        "completion",
        "SHELL",
        "print a completion script for bash, zsh or fish",
        (),
        "cntr completion bash > /etc/bash_completion.d/cntr",
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}


def parse(argv: list[str]) -> Parsed:
    """The command line after the program's name. Raises UsageError."""
    name = argv[0]
    command = BY_NAME.get(name)
    if command is None:
        near = next((known for known in BY_NAME if known.startswith(name[:2])), "attach")
        raise UsageError(
            f"{printable(name)}: no such command", f"did you mean `cntr {near}`? `cntr --help` lists them all"
        )
    parsed = Parsed(command)
    parsed.line = list(argv)
    rest = argv[1:]
    known = {name: option for option in (*command.options, HELP, DEBUG) for name in option.names}
    while rest:
        word = rest.pop(0)
        if word == "--":
            if command.positional and not command.takes_command:
                parsed.words += rest
            else:
                _take_command(parsed, rest)
            break
        if word.startswith("-") and len(word) > 1:
            _take_option(parsed, known, word, rest)
        elif command.takes_command and len(parsed.words) == len(command.positional):
            _take_command(parsed, [word, *rest])
            break
        else:
            parsed.words.append(word)
    if not parsed.flag("help"):
        _check_words(parsed)
    return parsed


def _take_command(parsed: Parsed, words: list[str]) -> None:
    if not parsed.command.takes_command:
        raise UsageError(f"{parsed.command.name} takes no command after --", f"see `cntr {parsed.command.name} --help`")
    if not words:
        raise UsageError("no command after --", "leave -- out for a shell")
    parsed.argv = words


def _take_option(parsed: Parsed, known: dict[str, Option], word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], "", word[2:])
    option = known.get(name)
    see = f"`cntr {parsed.command.name} --help` lists them"
    if option is None:
        raise UsageError(f"{parsed.command.name}: no such option: {printable(name)}", see)
    if not option.value:
        if equals:
            raise UsageError(f"{name} takes no value", see)
        parsed.values[option.key] = True
        if value:  # -vh: short flags together
            _take_option(parsed, known, f"-{value}", rest)
        return
    if not (equals or value):
        if not rest:
            raise UsageError(f"{name} needs a value: {option.value}", see)
        value = rest.pop(0)
    if option.choices and value not in option.choices:
        raise UsageError(f"{name} {printable(value)}: not one of {', '.join(option.choices)}", see)
    if option.repeat:
        parsed.values[option.key] = [*parsed.texts(option.key), value]
    elif option.key in parsed.values:
        raise UsageError(f"{name} is given twice", "say it once")
    else:
        parsed.values[option.key] = value


def _check_words(parsed: Parsed) -> None:
    command = parsed.command
    needed = [name for name in command.positional if not name.startswith("[")]
    if len(parsed.words) < len(needed):
        missing = needed[len(parsed.words)]
        hint = "`cntr ps` lists running containers" if missing == "TARGET" else f"see `cntr {command.name} --help`"
        raise UsageError(f"{command.name}: {missing} is missing", hint)
    if len(parsed.words) > len(command.positional):
        raise UsageError(
            f"{command.name}: unexpected word: {printable(parsed.words[-1])}", f"see `cntr {command.name} --help`"
        )
