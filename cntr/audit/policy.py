"""Root's policy, /etc/cntr.conf: who may do what with which containers, for how long, and what must be recorded."""

from __future__ import annotations

import os
import stat

from cntr.audit import WIDENING, behind_sudo, sinks, times, who
from cntr.audit.toml import Table, TomlError, parse
from cntr.errors import CntrError, Refused, printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines import Container

LIMIT = 1 << 16  # bytes
COMMANDS = ("--host", "attach", "cp", "exec", "forward", "mount", "run", "sessions", "slim")
OWN_FILES = ("archive", "dir", "oci")  # targets that are files on this machine
# {table: {key: type}}
KEYS: dict[str, dict[str, type]] = {
    "record": {"require": bool, "journal": bool, "audit": bool, "file": str},
    "session": {"reason": bool, "limit": str, "forbid": list},
    "allow": {"commands": list, "targets": list, "users": list},
}
TYPES = {bool: "true or false", str: "a string", list: "an array of strings"}


class Rule:
    """One [[allow]] table: one pattern of each kind must match; None matches anything."""

    __slots__ = ("commands", "targets", "users")

    def __init__(self, table: Table) -> None:
        lists = {key: value for key, (value, _) in table.items.items() if isinstance(value, list)}
        self.commands, self.targets, self.users = (lists.get(key) for key in ("commands", "targets", "users"))


class Policy:
    """The contents of the file. rules: empty if every user and target is allowed."""

    def __init__(self) -> None:
        self.sinks = sinks.Settings()
        self.reason = False
        self.limit: float | None = None
        self.forbid: list[str] = []
        self.rules: list[Rule] = []

    def limit_of(self, wanted: float | None) -> float | None:
        """The time limit of a session in seconds: the one asked for, capped by the policy."""
        return min((limit for limit in (wanted, self.limit) if limit is not None), default=None)

    def check(self, command: str, reason: str, widening: list[str]) -> None:
        """Check what does not depend on the target. Raises Refused."""
        if command == "sessions":  # listing and ending sessions enters no container
            return
        if self.reason and not reason.strip():
            raise Refused(
                f"{command}: a reason is missing", "give --reason TEXT: the policy of this machine requires it"
            )
        for option in widening:
            if any(option == word or option.startswith(f"{word} ") for word in self.forbid):
                raise _no(f"{printable(option)} is forbidden")
        if self.rules and not self._rules_for(command):
            raise _no(f"{command} is not allowed for {_caller()}")

    def check_target(self, command: str, target: str, container: Container | None) -> None:
        """Check whether a rule matches the user, the command and the target. Raises Refused."""
        if not self.rules or command == "sessions":
            return
        names = _names(target, container)
        if not any(rule.targets is None or _has_target(rule.targets, names) for rule in self._rules_for(command)):
            raise _no(f"{names[0]} is not allowed for {_caller()}")

    def check_share(self, path: str, owner: int) -> None:
        """Check whether a file of this machine may be brought into a session: who is allowed some targets has there the rights
        of its owner, and so has to be that. Raises Refused.
        """
        if self.rules and responsible() not in (0, owner):
            raise Refused(
                f"--share {printable(path)}: it is not {_caller()}'s own, by the policy of this machine",
                "share a file or a directory of your own",
            )

    def check_whole(self, command: str) -> None:
        """Check a command that needs root's rights without any container: a rule without targets
        has to name it. Raises Refused.

        slim runs what it is told to: containers with any volume, and commands on this machine.
        --host and kubectl use root's keys for other machines, run what the ssh and kubectl
        configuration of root or the caller names, and bring files from there.
        """
        if self.rules and not any(rule.commands and rule.targets is None for rule in self._rules_for(command)):
            raise _no(f"{command} is not allowed for {_caller()}")

    def whose_sessions(self) -> int | None:
        """The user whose sessions may be listed and ended; None for everybody's. Others' have reasons and command lines in them."""
        if not self.rules or not responsible():
            return None
        return (
            None
            if any(rule.commands and rule.targets is None for rule in self._rules_for("sessions"))
            else responsible()
        )

    def _rules_for(self, command: str) -> list[Rule]:
        users = _callers()
        return [
            rule
            for rule in self.rules
            if (rule.commands is None or command in rule.commands)
            and (rule.users is None or _match_any(rule.users, users))
        ]


def _no(what: str) -> Refused:
    return Refused(f"{what} by the policy of this machine", "/etc/cntr.conf is root's to change")


def _names(target: str, container: Container | None) -> list[str]:
    """The names of a target that patterns match: the engine's names, not what the caller typed."""
    if container is None:
        return [printable(target)]
    if container.engine in OWN_FILES:  # its name is the path that was opened, see images.archive
        return [printable(f"{container.engine}:{container.name}")]
    if container.state == "image":
        return [printable(f"{_owner(container)}image:{container.image or container.name}")]
    found = [container, *(_around(container.pid) if container.engine in ("pid", "unit", "command") else [])]
    names = [f"{_owner(one)}{one.engine}:{name}" for one in found for name in (one.name, one.id) if name]
    return [printable(name) for name in names]


def _owner(container: Container) -> str:
    """``UID/`` for another user's container, else "". Name and process are then only that user's claim, who may want
    root's rights.
    """
    return f"{container.owner}/" if container.owner and container.owner != who.real_uid() else ""


def _has_target(patterns: list[str], names: list[str]) -> bool:
    """Whether a pattern matches. A pattern with a user before its first colon, or for a path, matches only names of
    that kind.
    """

    def is_owned(text: str) -> bool:
        return "/" in text.partition(":")[0]

    return any(_match_any([one for one in patterns if is_owned(one) == is_owned(name)], [name]) for name in names)


def _around(pid: int) -> list[Container]:
    """The containers that a process is in: those whose process shares its root's mount namespace and its pid namespace."""
    from cntr.engines import listing

    return [one for one in listing.running()[0] if one.pid and _namespaces(one.pid) == _namespaces(pid) != ()]


def _namespaces(pid: int) -> tuple[tuple[int, int], ...]:
    try:
        found = [os.stat(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "pid")]
    except OSError:
        return ()
    return tuple((status.st_dev, status.st_ino) for status in found)


def _match_any(patterns: list[str], names: list[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def responsible() -> int:
    """The uid that the policy applies to: of the login; else of the user who called sudo; else of the process."""
    login = who.login_uid()
    if login is not None:
        return login
    behind = behind_sudo.caller()
    return behind[0] if behind and not who.real_uid() else who.real_uid()


def _callers() -> list[str]:
    """The names of the caller in patterns: name, uid, and @group for each group."""
    import grp
    import pwd

    uid = responsible()
    names = [str(uid)]
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return names
    names.append(entry.pw_name)
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        try:
            names.append(f"@{grp.getgrgid(gid).gr_name}")
        except KeyError:
            names.append(f"@{gid}")
    return names


def _caller() -> str:
    names = _callers()
    return printable(names[1] if len(names) > 1 else f"uid {names[0]}")


# --- the file ------------------------------------------------------------------------------------------------------------


def load(path: str) -> Policy:
    """Read the policy. Raises CntrError if others than root can write the file, or for anything in it that is not
    understood.
    """
    try:
        return _policy(parse(_text(path)))
    except TomlError as error:
        raise CntrError(
            f"{path}: {printable(str(error))}", "cntr does nothing under a policy that it does not understand"
        ) from None
    except OSError as error:
        raise CntrError(
            f"{path}: {error.strerror}", "it must be a regular file of root's, readable by users of cntr"
        ) from None


def _text(path: str) -> str:
    """The text of the file. Raises OSError, TomlError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "not a regular file")
        if status.st_uid not in _roots() or status.st_mode & 0o022:
            raise OSError(1, "others than root can write to it")
        if status.st_size > LIMIT:
            raise OSError(27, f"larger than {LIMIT >> 10} KiB")
        data = b""
        while len(data) <= LIMIT and (chunk := os.read(fd, LIMIT + 1 - len(data))):
            data += chunk
    finally:
        os.close(fd)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TomlError(data[: error.start].count(b"\n") + 1, "not UTF-8") from None


def _roots() -> tuple[int, ...]:
    """The uids that count as root: in a user namespace, also the unmapped one of the machine's root."""
    rows = procfs.id_map(procfs.read("/proc/self/uid_map"))
    return (0,) if rows == ((0, 0, (1 << 32) - 1),) else (0, int(procfs.read("/proc/sys/kernel/overflowuid")))


def _policy(tables: list[Table]) -> Policy:
    policy = Policy()
    for table in tables:
        _check_keys(table)
        found = {key: value for key, (value, _) in table.items.items()}
        if table.name == "record":
            for key, value in found.items():
                setattr(policy.sinks, key, value)
        elif table.name == "allow":
            policy.rules.append(Rule(table))
        elif table.name == "session":
            policy.reason, policy.forbid = bool(found.get("reason")), found.get("forbid", [])  # type: ignore[assignment]
            if "limit" in found:
                policy.limit = times.seconds(str(found["limit"]))
    if policy.sinks.require and not (policy.sinks.journal or policy.sinks.audit or policy.sinks.file):
        raise TomlError(1, "a record is required, and there is nowhere to write one: journal, audit, file")
    return policy


def _check_keys(table: Table) -> None:
    """Raise TomlError for an unknown key."""
    if table.name not in KEYS and (table.name or table.items):
        line = table.line if table.name else min(line for _, line in table.items.values())
        raise TomlError(
            line, f"[{table.name}] is not one of {', '.join(KEYS)}" if table.name else "a key outside of any table"
        )
    if table.name and table.repeated != (table.name == "allow"):
        raise TomlError(table.line, f"it is {'[[allow]]' if table.name == 'allow' else f'[{table.name}]'}")
    for key, (value, line) in table.items.items():
        kind = KEYS[table.name].get(key)
        if kind is None:
            raise TomlError(line, f"`{key}` is not one of {', '.join(KEYS[table.name])}")
        if not isinstance(value, kind):
            raise TomlError(line, f"`{key}` is {TYPES[kind]}")
        known = {"forbid": (*WIDENING, "--tools host:all"), "commands": COMMANDS}.get(key)
        for word in value if known and isinstance(value, list) else ():
            if word not in known:  # type: ignore[operator]
                raise TomlError(line, f"`{key}`: {word!r} is not one of {', '.join(known)}")  # type: ignore[arg-type]
        if key == "file" and (not str(value).startswith("/") or os.path.normpath(str(value)) != value):
            raise TomlError(line, "`file` is a clean absolute path")
        if key == "limit" and times.seconds(str(value)) is None:
            raise TomlError(line, f"`limit`: {str(value)!r} is not a time, as 30m or 8h")
        if key == "users" and not value:
            raise TomlError(line, "`users` is empty: leave it out for everybody")


def findings(path: str) -> list[tuple[str, str, str]]:
    """For `cntr doctor`: (feature, state, fix) for records and for the policy at PATH."""
    settings, rows = sinks.Settings(), []
    try:
        settings = load(path).sinks if os.path.lexists(path) else settings
        rows.append((f"policy ({path})", "yes" if os.path.lexists(path) else "none", ""))
    except CntrError as error:
        rows.append((f"policy ({path})", "no", f"{error.message}: {error.hint}"))
    known = (("journald", sinks.JOURNAL), ("syslog", sinks.SYSLOG))
    where = [name for name, socket in known if settings.journal and os.path.exists(socket)][:1]
    where += ["the audit system"] if settings.audit else []
    where += [settings.file] if settings.file else []
    fix = f"neither journald nor syslog listens here: `file` in {path} names one, docs/audit.md"
    return [("records of sessions", ", ".join(where) or "nowhere", "" if where else fix), *rows]
