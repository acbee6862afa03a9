"""The record of each session, and root's policy in ``/etc/cntr.conf``.

See docs/audit.md. The interface is ``session.Session``, a scope around one command: it refuses what the policy forbids
before anything is entered, and writes a record at the beginning and at the end. ``sinks`` writes records, ``who``
describes the caller. The policy reader is imported only if there is a policy, and nothing is imported once a container
is entered.
"""

from __future__ import annotations

# Options that extend a session's reach: recorded separately, and forbidden by a policy if it says so.
WIDENING = tuple(
    "--agent --dbus --force --forward --network --no-cgroup --no-seccomp --privileged --reverse --share --socket --tools --user --wayland "
    "--write --x11".split()
)
