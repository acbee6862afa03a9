"""Who was here: the record of each session, and root's policy in ``/etc/cntr.conf``.

See docs/audit.md.

``session.Session`` is the whole interface: a scope around one command of cntr, which refuses what the policy forbids, before anything is
entered, and writes a record at the beginning and at the end. ``sinks`` is where records go to, ``who`` what is known of the caller. The
policy's reader is loaded where there is a policy, and nothing once a container is entered.
"""

from __future__ import annotations

# The options that widen what a session reaches: recorded by themselves, and what a policy can forbid.
WIDENING = tuple(
    "--agent --dbus --force --forward --network --no-cgroup --no-seccomp --privileged --reverse --share --socket --tools --user --wayland "
    "--write --x11".split()
)
