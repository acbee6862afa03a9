"""One use of cntr: allowed or refused by the policy, and recorded when it begins and ends."""

from __future__ import annotations

import os
import time

from cntr.audit import LIST_LIMIT, STRING_LIMIT, sinks, to_json, who, write_all
from cntr.errors import EXIT_FAILED, CntrError, Refused, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit import Fields
    from cntr.audit.cast import Recorder
    from cntr.audit.policy import Policy
    from cntr.engines import Container

POLICY = "/etc/cntr.conf"
# Fields that a session inside a session takes from the outer one, which has asked the engine.
OF_ENGINE = ("container.runtime", "container.name", "container.id", "container.image.name", "container.image.hash.all")
ANNOUNCED = "cntr-session"  # the memfd's name; see ``announce``
SHOWN_WORDS, SHOWN_LENGTH = 32, 200  # words and characters of a command line shown in the list of sessions


class Session:
    """A scope for one command. The arguments: its name, cntr's words (without secrets), widening options, reason,
    target as typed.

    copied: bytes moved by cp; status: of the command, for the final record; why: what ended it, if not the command;
    limit: time limit in seconds, None for none; recording: path of a file for its output, "" for none; recorder: writes
    that file; outer: fields of the session in which it was started.
    """

    def __init__(
        self, command: str, words: list[str], say: Callable[[str], None], *, target: str = "", reason: str = ""
    ) -> None:
        self.command, self.words, self.say, self.target, self.reason = command, words, say, target, reason
        self.widening: list[str] = []
        self.outer: dict[str, object] = {}
        self.limit: float | None = None
        self.policy: Policy | None = None
        self.settings = sinks.Settings()
        self.fields: Fields = {}
        self.begun = self.started = 0.0  # monotonic; wall clock; 0: no record yet
        self.copied, self.status, self.why = 0, EXIT_FAILED, ""
        self.recording, self.announced = "", -1
        self.recorder: Recorder | None = None

    def __enter__(self) -> Session:
        """Check the policy as far as possible without the target. Raises CntrError."""
        try:
            os.lstat(POLICY)
        except FileNotFoundError:
            return self
        except OSError:
            pass  # it exists, and reading it will report why it cannot be read
        from cntr.audit import hindrances, policy

        self.policy = policy.load(POLICY)
        if not os.geteuid():
            hindrances.remove()
        self.settings = self.policy.sinks
        self._ask(lambda rules: rules.check(self.command, self.reason, self.widening))
        self.limit = self.policy.limit_of(self.limit)
        return self

    def begin(self, container: Container | None = None) -> None:
        """The target is known and is entered next: check the policy and write the first record. Raises CntrError."""
        if not self.fields:
            self._describe()
        self._add(container)
        self.check_target(container)
        if self.recording:
            from cntr.audit import cast

            self.recorder = cast.Recorder(self.recording, self.words)
        self.begun, self.started = time.monotonic(), time.time()
        self._write("start", f"{self._label()}: {self.command} began")

    def check_target(self, container: Container | None) -> None:
        """Check the policy for a target that was found again. Raises CntrError."""
        self._ask(lambda rules: rules.check_target(self.command, self.target, container))

    def announce(self) -> None:
        """Create the memfd by which `cntr sessions` finds the session; it goes with this process. Call after the last
        fork.
        """
        words = self.fields["process.args"]
        assert isinstance(words, list)
        shown: Fields = {**self.fields, "event.start": timestamp(self.started), "cntr.limit": int(self.limit or 0)}
        shown["process.args"] = [word[:SHOWN_LENGTH] for word in words[:SHOWN_WORDS]]
        shown["event.reason"] = str(shown["event.reason"])[:SHOWN_LENGTH]
        self.announced = os.memfd_create(ANNOUNCED, sinks.MFD_CLOEXEC)
        write_all(self.announced, to_json(shown).encode())

    def end(self, status: int, *, said: bool = False) -> None:
        """Write the final record, once. Never raises. A failing sink was already reported at the beginning."""
        if not self.begun:
            return
        seconds, self.begun = time.monotonic() - self.begun, 0.0
        fields: Fields = {
            "event.outcome": "success" if status == 0 else "failure",
            "event.start": timestamp(self.started),
            "event.duration": int(seconds * 1e9),
            "process.exit_code": status,
            "cntr.ended_by": self.why,
        }
        if self.copied:
            fields["cntr.copied.bytes"] = self.copied
        why = f" ({self.why})" if self.why else ""
        try:
            self._write("end", f"{self._label()}: {self.command} ended with status {status}{why}", fields)
        except CntrError as error:
            if not said:
                self.say(error.message)

    def hand_over(self) -> None:
        """Leave the final record to another process."""
        self.begun = 0.0

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write the final record, for an error or with ``status``."""
        if self.announced >= 0:
            os.close(self.announced)
            self.announced = -1
        if self.recorder:
            self.recorder.close(self.say, unused=error is not None and not self.recorder.size)
        if error is not None:
            self.status = error.exit_code if isinstance(error, CntrError) else EXIT_FAILED
            message = error.message if isinstance(error, CntrError) else f"{type(error).__name__}: {error}"
            self.fields["error.message"] = bounded(message)
        self.end(self.status, said=isinstance(error, Refused))

    def _ask(self, question: Callable[[Policy], None]) -> None:
        """Ask the policy; record a refusal. Raises Refused."""
        if self.policy is None:
            return
        try:
            question(self.policy)
        except Refused as error:
            if not self.fields:
                self._describe()
            try:
                self._write("denied", f"{self._label()}: {self.command} refused: {error.message}")
            except CntrError:
                pass  # the refusal stands without a record
            raise

    def _describe(self) -> None:
        """Collect the fields that both records have about the caller."""
        self.fields = who.fields()
        self.fields.update(
            {
                "event.kind": "event",
                "event.provider": "cntr",
                "event.dataset": "cntr.session",
                "event.category": ["session"],
                "event.action": self.command,
                "event.id": os.urandom(8).hex(),
                "event.reason": bounded(self.reason),
                "process.args": ["cntr", *(bounded(word) for word in self.words[:LIST_LIMIT])],
                "cntr.target": bounded(self.target),
                "cntr.widening": [bounded(word) for word in self.widening[:LIST_LIMIT]],
            }
        )
        if len(self.words) > LIST_LIMIT:
            self.fields["process.args_count"] = len(self.words) + 1

    def _add(self, container: Container | None) -> None:
        """Collect the fields that both records have about the target."""
        if container:
            self.fields.update(
                {
                    "container.runtime": bounded(container.engine),
                    "container.name": bounded(container.name),
                    "container.id": bounded(container.id),
                    "container.image.name": bounded(container.image),
                    "container.image.hash.all": [bounded(container.digest)] if container.digest else [],
                    "cntr.target_pid": container.pid,
                    "cntr.target_owner": str(container.owner),
                }
            )
            if str(self.outer.get("cntr.target_pid")) == str(container.pid):
                self.fields["cntr.session.parent"] = bounded(str(self.outer.get("event.id", "")))
                for key in OF_ENGINE:
                    found = self.outer.get(key, "")
                    self.fields[key] = (
                        [bounded(str(one)) for one in found] if isinstance(found, list) else bounded(str(found))
                    )

    def _label(self) -> str:
        """The user and the target: the beginning of a message."""
        found = self.fields
        user = found["user.audit.name"] or found["cntr.sudo.user"] or found["user.name"] or f"uid {found['user.id']}"
        name = found.get("container.name") or found.get("container.id")
        return f"{user}: {found['container.runtime']}:{name}" if name else f"{user}: {found['cntr.target']}"

    def _write(self, kind: str, message: str, more: Fields | None = None) -> None:
        """Write one record to every sink. Raises Refused if a record is required and could not be written."""
        fields: Fields = {
            "@timestamp": timestamp(time.time()),
            "message": message,
            "ecs.version": "8.11.0",
            "event.type": [kind],
            "event.outcome": {"start": "unknown", "denied": "failure"}.get(kind, "unknown"),
            **self.fields,
            **(more or {}),
        }
        failed = sinks.write(
            kind, {key: value for key, value in fields.items() if value not in ("", [])}, self.settings
        )
        for sink, error in failed:
            what = f"no record in {sink}: {printable(str(error.strerror or error))}"
            if self.settings.require:
                raise Refused(f"{what}: {POLICY} requires one", "no session starts without its record")
            self.say(f"note: {what}")


def check_whole(command: str) -> None:
    """Check whether the policy allows a command that makes no session here.

    That is slim, or the use of root's keys and files with other machines ("--host") where an
    ordinary user uses their own. Raises CntrError.
    """
    if (command == "slim" or os.geteuid() == 0) and os.path.lexists(POLICY):
        from cntr.audit import policy

        policy.load(POLICY).check_whole(command)


def timestamp(seconds: float) -> str:
    """ISO 8601, UTC, with milliseconds."""
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return f"{year}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{int(seconds % 1 * 1000):03d}Z"


def bounded(text: str) -> str:
    """TEXT made safe for a record: one line, no escape sequences, bounded length."""
    shown = printable(text[:STRING_LIMIT])
    return shown if len(text) <= STRING_LIMIT else f"{shown}… ({len(text) - STRING_LIMIT} more)"
