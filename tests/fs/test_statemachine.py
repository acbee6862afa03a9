"""The same calls on two trees of one filesystem type, one of them through CntrFS, must give the
same results.

Compared after every step: the result or errno; the whole stat, extended attributes, listing and
data of every name; fstat of every open file. The server must still run. $CNTR_EXAMPLES=N runs N
random examples instead of the fixed few.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from testkit.servers import TreeUnderTest, remove_tree

from . import snapshots, syscalls
from .actors import ACTORS, GROUPS, UID, USER
from .agents import Agent, AgentLost
from .checks._acl import ACCESS, DEFAULT, acl
from .checks._tools import FUTURE_NS, PAST_NS
from .divergences import result_allowed, tree_allowed

NAMES = st.sampled_from(("a", "b", "c"))
PATHS = st.one_of(NAMES, st.lists(NAMES, min_size=2, max_size=3).map("/".join), st.sampled_from(("a/../b", "n" * 255)))
TEXTS = st.sampled_from(("a", "b", "../b", "c/a", "nowhere", "."))
WHO = st.integers(0, len(ACTORS) - 1)
MODES = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2775, 0o1777, 0o640, 0o6777))
OFFSETS = st.sampled_from((0, 1, 7, 4095, 4096, 5000, 65536, 70001))
SIZES = st.sampled_from((0, 1, 3, 4096, 5001, 66000))
DATA = st.sampled_from((b"x", b"some data", b"y" * 4096, b"z" * 5001))
TIMES = st.sampled_from((PAST_NS, FUTURE_NS, 0, 1, 5_000_000_000))
IDS = st.sampled_from((-1, 0, 7, UID, GROUPS[0], 300000, 300007))
XATTRS = st.sampled_from(("user.a", "user.b", "trusted.a", "security.a", "nonsense"))
ACLS = st.sampled_from(
    (
        acl(user=6, group=4, other=4),
        acl(user=7, group=5, other=0, mask=7, users={UID: 7}),
        acl(user=6, group=6, other=0, mask=4, groups={GROUPS[1]: 6}),
        acl(user=7, group=7, other=7, mask=0, users={0: 0}),
    )
)
ACCESS_MODES = st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
OPEN_EXTRAS = st.sampled_from(
    (0, 0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_CREAT | os.O_APPEND,
     os.O_CREAT | os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_PATH, os.O_SYNC)
)  # fmt: skip
FALLOCATE = st.sampled_from((0, 1, 3, 0x10, 0x11))


class Pair:
    """The agents of the two trees, shared by the state machines of a run."""

    def __init__(self, place: TreeUnderTest) -> None:
        self.place = place
        self.agents = [[Agent(actor) for actor in ACTORS] for _ in range(2)]

    def end(self) -> None:
        for agent in (agent for row in self.agents for agent in row):
            agent.end()


class Twins(RuleBasedStateMachine):
    """One example: a fresh pair of directories."""

    pair: Pair

    def __init__(self) -> None:
        super().__init__()
        place = self.pair.place
        self.names = [place.fresh(), place.fresh()]
        # Both are on the backing filesystem; the second is seen through the mount.
        self.tops = [str(place.behind / self.names[0]), str(place.directory / self.names[1])]
        for top in self.tops:
            os.chmod(top, 0o777)
        for row, top in zip(self.pair.agents, self.tops):
            for agent in row:
                agent("begin", top)
        self.open: list[tuple[int, int]] = []  # (who, slot)
        self.slots = 0
        self.since = time.time_ns()
        self.step = "begin"
        self.before: tuple[snapshots.Snapshot, snapshots.Snapshot] | None = None

    def both(self, who: int, call: str, *arguments: Any) -> bool:
        """Make the same call on both trees; True if it succeeded."""
        self.step = f"{ACTORS[who].name}: {call}{arguments}"
        native, mounted = (row[who](call, *arguments) for row in self.pair.agents)
        if native != mounted and not result_allowed(self.pair.place.name, call, native, mounted):
            raise AssertionError(f"{self.step}\n  native:  {_brief(native)}\n  mounted: {_brief(mounted)}")
        if native[0] != mounted[0] and native[0] == "value" and call not in ("fallocate", "copy", "lseek"):
            raise AssertionError(f"{self.step}: only one tree has changed; the example cannot continue")
        return native[0] == "value" and mounted[0] == "value"

    # Open files

    @rule(who=WHO, path=PATHS, access=ACCESS_MODES, extra=OPEN_EXTRAS, mode=MODES)
    def open_file(self, who: int, path: str, access: int, extra: int, mode: int) -> None:
        self.slots += 1
        if self.both(who, "open", self.slots, path, access | extra | os.O_NONBLOCK, mode):
            self.open.append((who, self.slots))

    @rule(who=WHO, path=PATHS, mode=MODES)
    def open_nameless(self, who: int, path: str, mode: int) -> None:
        if self.pair.place.name == "pyfuse3":
            return  # O_TMPFILE is not supported there: see expected.py
        self.slots += 1
        if self.both(who, "open", self.slots, path, os.O_RDWR | syscalls.O_TMPFILE, mode):
            self.open.append((who, self.slots))

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 20), name=NAMES, access=ACCESS_MODES, extra=OPEN_EXTRAS, mode=MODES)
    def open_below_open_directory(self, index: int, name: str, access: int, extra: int, mode: int) -> None:
        who, slot = self.open[index % len(self.open)]
        self.slots += 1
        if self.both(who, "open_at", self.slots, slot, name, access | extra | os.O_NONBLOCK, mode):
            self.open.append((who, self.slots))

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 20), access=ACCESS_MODES)
    def reopen(self, index: int, access: int) -> None:
        who, slot = self.open[index % len(self.open)]
        self.slots += 1
        if self.both(who, "reopen", self.slots, slot, access | os.O_NONBLOCK):
            self.open.append((who, self.slots))

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 20))
    def close(self, index: int) -> None:
        who, slot = self.open.pop(index % len(self.open))
        self.both(who, "close", slot)

    @precondition(lambda self: self.open)
    @rule(
        index=st.integers(0, 20),
        call=st.one_of(
            st.tuples(st.just("pread"), SIZES, OFFSETS),
            st.tuples(st.just("pwrite"), DATA, OFFSETS),
            st.tuples(st.just("write"), DATA),
            st.tuples(st.just("ftruncate"), SIZES),
            st.tuples(st.just("fchmod"), MODES),
            st.tuples(st.just("fchown"), IDS, IDS),
            st.tuples(st.just("futimens"), TIMES, TIMES),
            st.tuples(st.just("fsync")),
            st.tuples(st.just("fallocate"), FALLOCATE, OFFSETS, SIZES),
            st.tuples(st.just("store"), DATA, OFFSETS),
            st.tuples(st.just("fsetxattr"), XATTRS, DATA),
            st.tuples(st.just("getdents")),
            st.tuples(st.just("name_open_file"), PATHS),
            st.tuples(st.just("mkdir_at"), NAMES, MODES),
        ),
    )
    def use_open_file(self, index: int, call: tuple[Any, ...]) -> None:
        who, slot = self.open[index % len(self.open)]
        self.both(who, call[0], slot, *call[1:])

    @precondition(lambda self: len(self.open) > 1)
    @rule(one=st.integers(0, 20), two=st.integers(0, 20), size=SIZES, offset_in=OFFSETS, offset_out=OFFSETS)
    def copy_range(self, one: int, two: int, size: int, offset_in: int, offset_out: int) -> None:
        who, source = self.open[one % len(self.open)]
        other, target = self.open[two % len(self.open)]
        if who == other:
            self.both(who, "copy", source, target, size, offset_in, offset_out)

    # Locks

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 20), kind=st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)))
    def flock(self, index: int, kind: int) -> None:
        who, slot = self.open[index % len(self.open)]
        self.both(who, "flock", slot, kind)

    @precondition(lambda self: self.open)
    @rule(
        index=st.integers(0, 20),
        call=st.sampled_from(("lock", "lock", "lock", "is_locked", "lock_in_thread", "lock_in_child")),
        open_file=st.booleans(),
        kind=st.sampled_from((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)),
        start=st.sampled_from((0, 5, 10)),
        length=st.sampled_from((0, 5, 7)),
    )
    def lock(self, index: int, call: str, open_file: bool, kind: int, start: int, length: int) -> None:
        who, slot = self.open[index % len(self.open)]
        self.both(who, call, slot, open_file, kind, start, length)

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 20))
    def dup(self, index: int) -> None:
        who, slot = self.open[index % len(self.open)]
        self.slots += 1
        if self.both(who, "dup", self.slots, slot):
            self.open.append((who, self.slots))

    # Names

    @rule(who=WHO, path=PATHS, mode=MODES)
    def mkdir(self, who: int, path: str, mode: int) -> None:
        self.both(who, "mkdir", path, mode)

    @rule(who=WHO, path=PATHS, mode=MODES, kind=st.sampled_from((0o010000, 0o140000, 0o100000, 0o020000)))
    def mknod(self, who: int, path: str, mode: int, kind: int) -> None:
        self.both(who, "mknod", path, kind | mode, os.makedev(1, 3) if kind == 0o020000 else 0)

    @rule(who=WHO, text=TEXTS, path=PATHS)
    def symlink(self, who: int, text: str, path: str) -> None:
        self.both(who, "symlink", text, path)

    @rule(who=WHO, old=PATHS, new=PATHS)
    def link(self, who: int, old: str, new: str) -> None:
        self.both(who, "link", old, new)

    @rule(who=WHO, old=PATHS, new=PATHS, flags=st.sampled_from((0, 0, 0, 1, 2)))
    def rename(self, who: int, old: str, new: str, flags: int) -> None:
        self.both(who, "rename", old, new, flags)

    @rule(
        who=WHO,
        call=st.sampled_from(("unlink", "rmdir", "readlink", "stat", "read", "listdir", "listxattr", "touch")),
        path=PATHS,
    )
    def use_path(self, who: int, call: str, path: str) -> None:
        self.both(who, call, path)

    # Attributes

    @rule(who=WHO, mask=st.sampled_from((0, 0o022, 0o077, 0o777)))
    def umask(self, who: int, mask: int) -> None:
        self.both(who, "umask", mask)

    @rule(who=WHO, path=PATHS, mode=MODES)
    def chmod(self, who: int, path: str, mode: int) -> None:
        self.both(who, "chmod", path, mode)

    @rule(who=WHO, path=PATHS, uid=IDS, gid=IDS, follow=st.booleans())
    def chown(self, who: int, path: str, uid: int, gid: int, follow: bool) -> None:
        self.both(who, "chown", path, uid, gid, follow)

    @rule(who=WHO, path=PATHS, size=SIZES)
    def truncate(self, who: int, path: str, size: int) -> None:
        self.both(who, "truncate", path, size)

    @rule(who=WHO, path=PATHS, atime=TIMES, mtime=TIMES, follow=st.booleans())
    def utimens(self, who: int, path: str, atime: int, mtime: int, follow: bool) -> None:
        self.both(who, "utimens", path, atime, mtime, follow)

    @rule()
    def age(self) -> None:
        """Set the times of every name into the past, so that any later change is visible."""
        assert self.before is not None
        for path in self.before[0]:
            self.both(0, "utimens", path or ".", PAST_NS, PAST_NS, False)

    @rule(who=WHO, path=PATHS, mode=st.integers(0, 7))
    def access(self, who: int, path: str, mode: int) -> None:
        self.both(who, "access", path, mode)

    @rule(who=WHO, path=PATHS, name=XATTRS, value=DATA, flags=st.sampled_from((0, 0, 1, 2)))
    def setxattr(self, who: int, path: str, name: str, value: bytes, flags: int) -> None:
        self.both(who, "setxattr", path, name, value[:1000], flags)

    @rule(who=WHO, path=PATHS, name=XATTRS, call=st.sampled_from(("getxattr", "removexattr")))
    def use_xattr(self, who: int, path: str, name: str, call: str) -> None:
        self.both(who, call, path, name)

    @rule(who=WHO, path=PATHS, kind=st.sampled_from((ACCESS, DEFAULT)), value=ACLS)
    def set_acl(self, who: int, path: str, kind: str, value: bytes) -> None:
        self.both(who, "setxattr", path, kind, value, 0)

    # What must hold after every step

    @invariant()
    def server_is_alive(self) -> None:
        server = self.pair.place.server
        assert server is None or server.alive, f"the server died in {self.step}\n{server.log_end() if server else ''}"

    @invariant()
    def trees_are_equal(self) -> None:
        now = (snapshots.take(self.tops[0]), snapshots.take(self.tops[1]))
        found = [
            difference
            for difference in snapshots.differences(*now, self.before, self.since)
            if not tree_allowed(self.pair.place.name, *difference[1:])
        ]
        self.before = now
        assert not found, f"after {self.step}:\n" + "\n".join(
            f"  {path or '.'}: {field}: native {_brief(native)}, mounted {_brief(mounted)}"
            for path, field, native, mounted in found
        )
        for who, slot in self.open:
            step = self.step
            self.both(who, "fstat", slot)
            self.step = step

    def teardown(self) -> None:
        for row in self.pair.agents:
            for agent in row:
                agent("leave")
        try:
            if self.before is not None:  # what the mount shows is what the backing filesystem holds
                backing = snapshots.take(str(self.pair.place.behind / self.names[1]))
                found = snapshots.differences(backing, snapshots.take(self.tops[1]), None, self.since)
                found = [row for row in found if row[1] not in ("atime", "blocks")]
                assert not found, f"the mount and its backing tree differ: {found}"
        finally:
            for name in self.names:
                remove_tree(self.pair.place.behind / name)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}… ({len(text)} characters)"


def bounds() -> settings:
    """How many examples to run: $CNTR_EXAMPLES."""
    examples = int(os.environ.get("CNTR_EXAMPLES", "0"))
    return settings(
        max_examples=examples or 40,
        stateful_step_count=30,
        deadline=None,
        derandomize=not examples,  # the same examples for every commit; long runs draw new ones
        database=None,
        phases=[Phase.generate, Phase.shrink] if examples else [Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=bool(examples),
    )


@pytest.mark.timeout(3600)
def test_twins(here: TreeUnderTest) -> None:
    pair = Pair(here)
    machine = type("TwinsOfOnePlace", (Twins,), {"pair": pair})
    try:
        run_state_machine_as_test(machine, settings=bounds())
    except AgentLost:
        if here.server:
            here.server.kill()
        raise
    finally:
        pair.end()


def test_actors_reach_their_roles() -> None:
    assert {actor.name for actor in ACTORS} >= {"root", "user", "namespace-root"}
    assert USER.groups
