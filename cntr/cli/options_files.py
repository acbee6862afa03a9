"""The options of the commands that work on files, ``cp`` and ``slim``."""

from __future__ import annotations

from cntr.cli.options_attach import ENV, JSON, REASON, TIMEOUT
from cntr.cli.parser import Option, Subcommand

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
container and never come out of one.

With `cntr --host HOST cp` the container is on HOST and the other side is here; --archive then keeps the container's own numbers."""

COPY = Subcommand(
    "cp",
    "SRC DST",
    "copy files between the host and a container; the image needs no tools",
    (
        Option(
            "-a --archive",
            "",
            "keep owner, group and ACLs too; into a container also set-id bits and file capabilities",
        ),
        Option(
            "-r --recursive", "", "no effect: directories are always copied recursively (accepted for compatibility)"
        ),
        Option("-L --follow-link", "", "if SRC is a symbolic link, copy its target"),
        REASON,
        TIMEOUT,
        Option("--json", "", "events on stderr, a line of JSON each: progress, problem, note, warning, done"),
    ),
    "cntr cp web:/var/log/app.log .         a file out of the container\n"
    "cntr cp ./conf/. docker:web:/etc/app   what is in conf into /etc/app\n"
    "cntr cp web:/run/state /tmp            a directory, from a tmpfs too: /tmp/state",
    details=COPYING,
)

SLIMMING = """TARGET is an image or a container of Docker, Podman or containerd (docker:NAME where several have it), archive:FILE
(docker save, podman save), oci:DIR, dir:ROOT, or a machine that does not run (raw:NAME, nspawn:NAME, lxc:NAME, incus:NAME,
buildah:NAME), which becomes an image. The image runs in its engine, or by runc or crun on CntrFS where no engine has it,
without a network of its own, while what it uses is recorded, from before its first instruction; nothing is put into it. `-- CMD…`
is a command of this machine: it runs in the container's network namespace, where the container is 127.0.0.1, and is tried again
until it succeeds or --timeout is over; CNTR_SLIM_PID and CNTR_SLIM_NAME say which container it is. --http, --exec and CMD may be
given together, Ctrl-C ends the recording. With none of them the image is started,
its ports are asked once, and the recording ends when nothing new has been opened for two seconds.

What rules add has its reason (--explain). The slim image must then do the same exercise on CntrFS, where each file that it misses
is added, and once more in the engine. If it does not, the status is 1 and no archive is written. What the exercise did not ask
for may be missing.

`cntr slim diff TARGET OTHER [OVER]` compares two images file by file, OVER laid over OTHER: status 0 if they are the same, 1 if
not."""

SLIM_OPTIONS = (
    Option("-o --output", "FILE", "the archive, in Docker's and OCI's format (default without --load: slim.tar)"),
    Option("-t --tag", "REF", "name of the slim image (default: NAME:TAG-slim)"),
    Option("--load", "", "load it into the engine that has the image"),
    Option("--http", "[HOST:]PORT[/PATH]", "the exercise: GET it, and what its page references", repeat=True),
    Option("--exec", "WORDS", "the exercise: a program of the container's own, run in it", repeat=True),
    Option("--for", "TIME", "record for this time: 30s, 5m, 2h"),
    Option("--timeout", "TIME", "time until the image must answer (default: 60s)"),
    Option("--watch", "", "watch the running container TARGET without changing it; Ctrl-C ends it"),
    Option("--accesses", "FILE", "read earlier accesses from FILE, and save all of them to it"),
    Option(
        "--recorder",
        "KIND",
        "fanotify (root, the engine's own run), cntrfs (rootless, archives; sees stat too)",
        choices="auto fanotify cntrfs",
    ),
    Option(
        "--verify",
        "WHERE",
        "verify the slim image on CntrFS, where missing files are added, and in the engine (default: all)",
        choices="all cntrfs engine none",
    ),
    Option(
        "--keep",
        "GLOB",
        "keep these paths too: * does not match /, ** does; a directory stands for everything below",
        repeat=True,
    ),
    Option("--drop", "GLOB", "remove these files, even if a rule keeps them", repeat=True),
    Option("--app", "DIR", "the application is in DIR: keep all of it", repeat=True),
    Option("--keep-shell", "", "keep a shell and some twenty tools"),
    Option("--package-db", "KIND", "dpkg's and apk's records (default: filtered)", choices="filtered full none"),
    Option("--licences", "", "keep the copyright files of kept packages"),
    Option("--explain", "PATH", "say why PATH is kept or removed", repeat=True),
    Option("--report", "FILE", "write a report: .html, one page with charts, or .json, everything"),
    Option("--fat", "FILE", "also write the rest as an archive; verified to be the image together with the slim one"),
    Option("--compress", "KIND", "compression of the archive's layer (default: gzip)", choices="gzip zstd none"),
    Option("--layers", "N", "2: the application in a separate layer (default: 1)", choices="1 2"),
    Option("--network", "NAME", "the engine's network to run it in: none (default), host, container:NAME, …"),
    ENV,
    Option("-v --volume", "SPEC", "a volume for the runs, in the engine's syntax", repeat=True),
    Option("--cmd", "WORDS", "run this instead of the image's Cmd"),
    Option("--entrypoint", "WORDS", "run this instead of the image's Entrypoint"),
    JSON,
)

SLIM = Subcommand(
    "slim",
    "TARGET [OTHER] [OVER] [LAST]",
    "split an image: a slim one with what runs, and the rest",
    SLIM_OPTIONS,
    "cntr slim nginx:1 --http 80 --load     record, complete, prove, load as nginx:1-slim\n"
    "cntr slim app:2 -o app.tar -- curl -f http://127.0.0.1:8080/login\n"
    "cntr slim podman:db -e PW=x --exec 'psql -U postgres -c \"select 1\"'\n"
    "cntr slim web --watch --accesses web.txt    what the running container `web` uses, until Ctrl-C\n"
    "cntr slim diff nginx:1 archive:slim.tar     what was left out",
    takes_command=True,
    details=SLIMMING,
)
