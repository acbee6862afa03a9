"""The options of ``cntr forward``."""

from __future__ import annotations

from cntr.cli.options_attach import JSON, REASON, TIMEOUT
from cntr.cli.parser import Option, Subcommand

FORWARDING = """FORWARD is [ADDR:]PORT[:PORT], what listens here and what it leads to in TARGET; PORT alone is both.
Without ADDR it is 127.0.0.1, in the container ::1 too; port 0 to listen at is a free one, which is said. /udp behind it is UDP. A Unix
socket can be on either side: /its/path, or @name in the abstract namespace: 5432:/run/pg.sock, /tmp/web.sock:80. An address of
another host that the container reaches goes before the second port: 8080:10.0.0.5:80. Addresses are numbers, [::1] in brackets.

One line says what listens; from then on it is there, also while the container restarts: who connects meanwhile waits for it up to
a minute. A container named by its pid is not found again. Where nobody listens in the container the client gets a reset, and one
line says so. A connection that was cut off at one end is reset at the other.

`-- CMD…` is run when all ports are up, and its status is that of cntr; CNTR_FORWARD_1, CNTR_FORWARD_2, … are the addresses. Without
it, it goes on until a signal comes. `cntr forward TARGET - PORT` joins stdin and stdout to the port: ssh's ProxyCommand.

In a session of `cntr attach --forward` TARGET is left out, and it ends with the session: `cntr forward 8080:80 &`. Of this machine it
reaches ports on 127.0.0.1 and ::1 then, from 1024 on where it listens."""

FORWARD = Subcommand(
    "forward",
    "[TARGET] [FORWARD]…",
    "ports and sockets of a container on this machine, or with -R of this machine in the container",
    (
        Option(
            "-R --reverse",
            "FORWARD",
            "listen in the container, on its 127.0.0.1, and connect to this machine",
            repeat=True,
        ),
        REASON,
        TIMEOUT,
        JSON,
    ),
    "cntr forward web 8080:80               its port 80 at 127.0.0.1:8080\n"
    "cntr forward web 0:80 53:53/udp        a free port for 80, and UDP\n"
    "cntr forward db 5432:/run/postgresql/.s.PGSQL.5432\n"
    "cntr forward web -R 9000               port 9000 of this machine at the container's 127.0.0.1:9000\n"
    "cntr forward db 5432 -- psql -h 127.0.0.1\n"
    "ssh -o ProxyCommand='cntr forward web - 22' root@web",
    takes_command=True,
    details=FORWARDING,
)
