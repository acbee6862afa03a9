"""Verifies the slim image: on CntrFS, which reports each missing name, and in its engine; and that nothing was lost."""

from __future__ import annotations

import os
import time

from cntr.errors import CntrError
from cntr.slim import commands, compare, rules, sources, writer
from cntr.slim.accesses import Accesses
from cntr.slim.job import Job, configuration, exercise, publish
from cntr.slim.runs import Running
from cntr.slim.runs.runtime import RuntimeRunning
from cntr.slim.served import MISSED
from cntr.slim.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context
    from cntr.slim.writer import Archive

NOT_PROVED = 1  # exit status: the slim image was made but does not do what the whole one does
ROUNDS = 8
IDLE = 1e9


class Watched(Running):
    """A container that is not ours, which is only observed."""

    def __init__(self, pid: int, name: str) -> None:
        """pid: of its first process."""
        self.pid, self.name = pid, name
        self._fd = os.pidfd_open(pid)

    def exited(self) -> int | None:
        """0 when it has ended: its real status is not known to us."""
        import select

        return 0 if select.select([self._fd], [], [], 0)[0] else None

    def log(self) -> str:
        """Always "": its output goes to its engine."""
        return ""

    def exec(self, words: list[str], seconds: float) -> str:
        """Refused: --watch changes nothing."""
        raise commands.Failed("--exec with --watch", "a watched container is not changed")

    def stop(self) -> None:
        """Does nothing: the container keeps running."""


def _on_cntrfs(
    job: Job, shown: set[str] | None, hidden: frozenset[str] = frozenset(), *, grow: bool
) -> tuple[list[tuple[str, str]], CntrError | None]:
    """One run on CntrFS: what was used or missed, and why the exercise failed. hidden: paths that are never visible."""
    options = job.request.options
    if options.network not in ("none", "host"):
        raise CntrError(
            f"--network {options.network}: only an engine has that network, CntrFS does not",
            "--verify engine leaves the run on CntrFS out; recording takes an engine and root",
        )
    running = RuntimeRunning(job.source.image.settings, job.source.tree, options, job.guard)
    failed: CntrError | None = None
    try:
        try:
            running.start(shown, hidden, grow=grow)
            try:
                exercise(job, running, _Idle(running))
            finally:
                running.stop()
        except CntrError as error:
            failed = error
        return running.used(), failed
    finally:
        running.close()


class _Idle:
    """Counts the seconds since the record of a run grew."""

    def __init__(self, running: RuntimeRunning) -> None:
        self.running, self.size, self.since = running, -1, time.monotonic()

    def __call__(self) -> float:
        size = os.fstat(self.running.notes).st_size
        if size != self.size:
            self.size, self.since = size, time.monotonic()
        return time.monotonic() - self.since


def recorded_on_cntrfs(job: Job) -> Accesses:
    """Record by CntrFS: all uses, including lookups; needs no engine, and no rights but those in a user namespace."""
    used, failed = _on_cntrfs(job, None, grow=False)
    if failed is not None:
        raise failed
    found = Accesses()
    for kind, path in used:
        found.add(kind, path)
    for path in [path for path, kinds in found.kinds.items() if "open" in kinds]:
        entry = job.source.tree.get(path)
        if entry is not None and entry.is_executable:
            found.add("exec", path)  # to a filesystem, an execution is an open of an executable file
    return found


def on_cntrfs(job: Job, context: Context) -> None:
    """Run the slim image on CntrFS and add what is missed, until nothing is. Raises CntrError if it still does not
    work.
    """
    if job.request.options.network not in ("none", "host"):
        job.report.note(f"not run on CntrFS: --network {job.request.options.network} is the engine's alone")
        return
    grow = True
    for number in range(1, ROUNDS + 1):
        used, failed = _on_cntrfs(job, set(context.kept), frozenset(context.dropped), grow=grow)
        missed = {path for kind, path in used if kind == MISSED and path not in context.dropped} - context.missed
        job.report.rounds.append(sorted(missed))
        job.step(
            f"on CntrFS, round {number}: {'works' if failed is None else 'fails'}, "
            f"{len(missed)} name{'s' if len(missed) != 1 else ''} missed"
        )
        context.missed |= missed
        if missed:
            rules.complete(context)
        elif failed is not None:
            _blame(job, failed)
            return
        if failed is None and (not missed or not grow):
            job.report.on_cntrfs = True
            return
        grow = failed is not None and grow
    raise CntrError(
        f"the slim image does not work after {ROUNDS} rounds on CntrFS",
        "a longer exercise, or --app and --keep",
        NOT_PROVED,
    )


def _blame(job: Job, failed: CntrError) -> None:
    """The slim image fails without a missing file: check that the whole one fails here too, otherwise the slim one is
    wrong.
    """
    _, whole = _on_cntrfs(job, None, grow=False)
    if whole is None:
        raise CntrError(f"the slim image does not work: {failed.message}", failed.hint, NOT_PROVED)
    if job.source.engine is None or job.request.verify == "cntrfs":
        raise CntrError(f"the image does not work on CntrFS, the whole one neither: {whole.message}", "--verify engine")
    job.report.note(f"not verified on CntrFS, where the whole image does not work either: {whole.message}")


# --- what was written --------------------------------------------------------------------------------------------------


def what_was_written(job: Job, archive: Archive, place: str) -> str:
    """Load the archive into the engine, run it, do the exercise; return the loaded image's name. The guard removes it
    later.
    """
    engine, request = job.source.engine, job.request
    if engine is None:
        if request.verify in ("all", "engine"):
            _unpacked(job, archive, place)
        return ""
    if request.verify not in ("all", "engine") and not request.load:
        return ""
    there = engine.present(archive.id)
    temporary = "" if engine.NAME != "containerd" else f"localhost/cntr-slim-verify:{os.getpid()}"
    name = engine.load(archive.write, temporary, archive.id)
    if not there:
        job.guard.add(f"image {archive.id}", engine.removal(name))
    if request.verify in ("all", "engine"):
        _check_works(job, engine.start(name, request.options, job.guard, None), f" in {engine.NAME}")
        job.report.in_engine = engine.NAME
        job.step(f"works in {engine.NAME}")
    return name


def _check_works(job: Job, running: Running, where: str) -> None:
    try:
        exercise(job, running, lambda: IDLE)
    except CntrError as error:
        message = f"the slim image does not work{where}: {error.message}"
        raise CntrError(message, "nothing was written", NOT_PROVED) from None
    finally:
        running.stop()


def _unpacked(job: Job, archive: Archive, place: str) -> None:
    """Without an engine: unpack the archive again and run it from there."""
    path = os.path.join(place, "verify.tar")
    with open(path, "wb") as stream:
        archive.write(stream, "localhost/cntr-slim-verify:1")
    source = sources.of_file(f"archive:{path}", job.guard)
    os.unlink(path)
    source.tree.scan()
    settings = job.source.image.settings
    running = RuntimeRunning(settings, source.tree, job.request.options, job.guard)
    try:
        running.start(None)
        _check_works(job, running, "")
    finally:
        running.close()
        source.close()
    job.report.in_engine = running.command[0]
    job.step(f"works unpacked, run by {running.command[0]}")


def write_fat(job: Job, context: Context, archive: Archive, place: str) -> None:
    """Write the remainder as a separate archive, and verify that the slim image with it on top is the original."""
    tree = context.tree
    rest = [path for path, entry in tree.entries.items() if entry.is_directory or path not in context.kept]
    rest += [path for path in context.replaced if path in tree]
    layer = writer.layer(tree, dict.fromkeys(rest), {}, place, job.request.compress)
    fat = writer.Archive(place, configuration(job.source), [layer], job.request.compress)
    root = os.path.join(job.guard.directory(), "root")
    os.mkdir(root, 0o755)
    for one in (archive, fat):
        path = os.path.join(place, "both.tar")
        with open(path, "wb") as stream:
            one.write(stream, "")
        compare.unpack_over(f"archive:{path}", root)
        os.unlink(path)
    both = Tree(os.open(root, os.O_RDONLY | os.O_DIRECTORY)).scan()
    try:
        differences = compare.trees(tree, both)
    finally:
        both.close()
        job.guard.undo(os.path.dirname(root))
    if differences:
        shown = "; ".join(map(str, differences[:5]))
        raise CntrError(f"slim and fat together are not the image: {shown}", "this is a bug in cntr: please report it")
    name = f"{job.report.name}-fat"
    publish(job.request.fat, lambda stream: fat.write(stream, name))
    job.report.fat = job.request.fat
    job.step(f"{job.request.fat}: the rest, {layer.raw / 1e6:.1f} MB; both together are the image, file by file")
