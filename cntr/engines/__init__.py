"""From a name to a pid, engine by engine: the only package that knows container engines.

Each engine is one small module with these functions, loaded only where one of its traces (a socket, a directory) exists:

    find(name, deadline) -> list[Container]             what answers to NAME: a name, an id, a unique id prefix
    containers(deadline) -> list[Container]             all running containers
    find_by_process(name, deadline) -> list[Container]  optional: what only a walk over all processes finds. It is asked
                                                        when no engine's ``find`` knew the name: it costs 10 µs a process

``deadline`` is a time.monotonic() value. A module raises Refused(why) when the engine is there but will not answer, and
returns [] when it does not know the name. A module whose calls can block (a socket) says ``BLOCKING = True`` and is asked
in a thread of its own. Third parties add a module by the entry point group ``cntr.engines``; its TRACES attribute names
its traces (docs/engines.md has an example).
"""

from __future__ import annotations

from cntr.engines.container import Container, NotRunning, Refused, RemoteRefused, plain
from cntr.engines.lookup import notes, resolve, verify

__all__ = [
    "Container",
    "NotRunning",
    "Refused",
    "RemoteRefused",
    "notes",
    "plain",
    "resolve",
    "verify",
]
