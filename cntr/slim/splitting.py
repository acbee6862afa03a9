"""``cntr slim`` from top to bottom: find, scan, record, complete, verify on CntrFS, write, verify what was written,
report.
"""

from __future__ import annotations

import os
import signal
import time

from cntr.errors import CntrError, UsageError, printable
from cntr.slim import accesses, layering, record, rules, sources, verify, writer
from cntr.slim.accesses import Accesses
from cntr.slim.job import Job, Request, configuration, exercise, publish, slim_name
from cntr.slim.leftovers import Guard
from cntr.slim.rules import Context, application
from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.slim.exercise import Exercise
    from cntr.slim.report import Report
    from cntr.slim.sources import Source

ATTEMPTS = 3  # attempts; a recorder armed too late shows in the missing start of the first program
EXIT_TERMINATED = 143


def slim(request: Request, say: Callable[[str], None]) -> Report:
    """Split the image. Raises CntrError; then no archive exists, and nothing is left in the engine."""
    check(request)
    signal.signal(signal.SIGTERM, _terminated)
    with Guard() as guard:
        source = sources.find(request.text, guard, running=request.watch)
        try:
            job = Job(request, source, guard, say)
            return _slim(job)
        finally:
            source.close()


def check(request: Request) -> None:
    """Raise UsageError for incompatible options."""
    if request.watch and not (request.accesses or request.output or request.load):
        raise UsageError(
            "--watch needs --accesses or -o", "--accesses FILE saves what was used, -o FILE writes the image too"
        )
    if request.load and request.text.partition(":")[0] in sources.WITHOUT_ENGINE:
        raise UsageError("--load: no engine is named", "load the archive with the engine of your choice")
    if request.report and not request.report.endswith((".html", ".json")):
        raise UsageError(f"--report {printable(request.report)}: not a kind of report", "name a file .html or .json")
    if request.report.endswith(".html"):
        from cntr.slim import page

        page.demand_library()
    for volume in request.options.volumes:
        place = volume.partition(":")[0]
        if place.startswith("/") and not os.path.exists(place):  # an engine would create it
            raise CntrError(f"--volume {printable(volume)}: {printable(place)} is not there", "make it first")
    for name in filter(None, (request.output, request.fat, request.report, request.accesses)):
        directory = os.path.dirname(os.path.abspath(name))
        if not os.path.isdir(directory) or not os.access(directory, os.W_OK) or os.path.isdir(name):
            raise CntrError(f"{printable(name)}: can't be written", "name a file in a directory of yours")


def _terminated(number: int, frame: object) -> None:
    raise CntrError("ended by a signal", "", EXIT_TERMINATED)


def _slim(job: Job) -> Report:
    request, source = job.request, job.source
    source.demand_native()
    settings, exercise = source.image.settings, request.exercise
    request.options.stop_signal = str(settings.get("StopSignal") or "SIGTERM")
    _prepare(exercise, source)
    job.step(f"{source.image.engine}:{printable(source.image.reference)}")
    source.tree.scan()
    job.report.image(source.tree)
    used = accesses.read(request.accesses) if request.accesses and os.path.exists(request.accesses) else Accesses()
    used.merge(_watch(job) if request.watch else _record(job))
    if request.accesses:
        used.write(request.accesses)
        job.step(f"{printable(request.accesses)}: {len(used)} paths")
    if request.watch and not (request.output or request.load):
        job.report.recorded(used)
        return job.report
    context = Context(source.tree, settings, used, request.choices)
    context.application = application.of_layers(source.image.history(), sources.layer_names(source), source.tree)
    rules.complete(context)
    job.report.recorded(used)
    job.step(f"{len(used)} paths used, {_files(context)} files kept by use and rules")
    if request.verify in ("all", "cntrfs"):
        verify.on_cntrfs(job, context)
    _write(job, context)
    job.report.finish(context, exercise, time.monotonic() - job.begin)
    _reports(job, context)
    return job.report


def _files(context: Context) -> int:
    return sum(1 for path in context.kept if not context.tree.entries[path].is_directory)


def _prepare(exercise: Exercise, source: Source) -> None:
    """Add the steps that the image's configuration suggests."""
    settings = source.image.settings
    for port in settings.get("ExposedPorts") or {}:
        number, _, protocol = str(port).partition("/")
        if number.isdecimal() and protocol in ("", "tcp") and len(exercise.ports) < 8:
            exercise.ports.append(int(number))
    test = as_words((settings.get("Healthcheck") or {}).get("Test"))
    if test[:1] == ["CMD"]:
        exercise.health = test[1:]
    elif test[:1] == ["CMD-SHELL"]:
        exercise.health = ["/bin/sh", "-c", " ".join(test[1:])]


# --- recording ---------------------------------------------------------------------------------------------------------


def _record(job: Job) -> Accesses:
    """Run the image, do the exercise, and record what it uses."""
    request, source = job.request, job.source
    kind = request.recorder
    if kind == "auto":
        kind = "fanotify" if source.engine is not None and os.geteuid() == 0 and _is_first_namespace() else "cntrfs"
    if kind == "cntrfs":
        job.report.recorder = "CntrFS"
        return verify.recorded_on_cntrfs(job)
    if source.engine is None:
        raise UsageError(
            "--recorder fanotify: an engine must run the image",
            "load it into Docker or Podman first, or --recorder cntrfs",
        )
    job.report.recorder = "fanotify"
    for attempt in range(ATTEMPTS):
        found = _record_once(job)
        if any("exec" in kinds for kinds in found.kinds.values()):
            return found
        job.step(f"the start of the first program was missed, again ({attempt + 1} of {ATTEMPTS})")
    raise CntrError(
        f"the recorder came too late {ATTEMPTS} times: the first program's start was not seen",
        "the machine may be overloaded; or --recorder cntrfs",
    )


def _is_first_namespace() -> bool:
    return os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD  # PROC_USER_INIT_INO, linux/proc_ns.h


def _record_once(job: Job) -> Accesses:
    engine, source = job.source.engine, job.source
    assert engine is not None
    recorder = _recorder()
    try:
        try:
            running = engine.start(source.image.id, job.request.options, job.guard, recorder.arm)
        except CntrError as error:
            error.hint = (
                error.hint or "what it needs is given with --cmd, --entrypoint, -e, -v, --network, as to its engine"
            )
            raise
        try:
            if not recorder.is_armed:
                raise CntrError(f"{engine.NAME} did not show where the container's root is", "--recorder cntrfs")
            first = exercise(job, running, recorder.quiet_for)
            job.report.first_answer = job.report.first_answer or first
        finally:
            running.stop()
    finally:
        found = recorder.close()
    if found.lost:
        raise CntrError(
            "some of the uses were lost: fanotify's queue overflowed, a path is longer than a page, or a million were opened",
            "try again on a machine that is less busy, or with --recorder cntrfs",
        )
    return found


def _recorder() -> record.Recorder:
    try:
        return record.Recorder()
    except OSError as error:
        raise CntrError(
            f"recording by fanotify: {error.strerror}", "it takes root; --recorder cntrfs does without"
        ) from None


def _watch(job: Job) -> Accesses:
    """Watch a running container without changing it."""
    job.report.recorder = "fanotify, of a running container"
    pid = job.source.pid
    recorder = _recorder()
    try:
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            recorder.arm(root)
        finally:
            os.close(root)
        found = record.of_processes(pid)
        running = verify.Watched(pid, job.source.container)
        job.step("watching; Ctrl-C ends it" if not job.request.exercise.is_given() else "watching")
        if job.request.exercise.is_given():
            exercise(job, running, recorder.quiet_for)
        else:
            _until_interrupted(running)
    except OSError as error:
        raise CntrError(f"pid {pid} can't be watched: {error.strerror}", "--watch takes root") from None
    finally:
        seen = recorder.close()
    seen.merge(found)
    return seen


def _until_interrupted(running: verify.Watched) -> None:
    try:
        while running.exited() is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        return


# --- writing -----------------------------------------------------------------------------------------------------------


def _write(job: Job, context: Context) -> None:
    """Write the archive to a private place, verify it, and only then give it its name."""
    request, source = job.request, job.source
    place = job.guard.directory()
    parts = layering.parts(context, request.layers)
    layers = [writer.layer(source.tree, part, context.replaced, place, request.compress) for part in parts]
    archive = writer.Archive(place, configuration(source, len(layers)), layers, request.compress)
    for layer in layers:
        job.step(f"layer of {layer.raw / 1e6:.1f} MB, {layer.size / 1e6:.1f} MB compressed; image {archive.id[:12]}")
    if len(layers) < request.layers:
        job.report.note("one layer: nothing in the image tells application from system (--app DIR does)")
    job.report.archive(archive)
    name = request.tag or slim_name(source.image.reference)
    job.report.name = name
    loaded = verify.what_was_written(job, archive, place)
    if request.fat:
        verify.write_fat(job, context, archive, place)
    if request.output:
        publish(request.output, lambda stream: archive.write(stream, name))
        job.report.output = request.output
    if request.load and source.engine is not None:
        source.engine.tag(loaded, name)
        job.guard.drop(f"image {archive.id}")
        job.report.loaded = name
    else:
        job.guard.undo(f"image {archive.id}")
    job.guard.undo(place)


def _reports(job: Job, context: Context) -> None:
    path = job.request.report
    if path.endswith(".json"):
        publish(path, lambda stream: stream.write(job.report.json(everything=True).encode() + b"\n"))
    elif path:
        from cntr.slim import page

        publish(path, lambda stream: stream.write(page.html(job.report, context).encode("utf-8", "backslashreplace")))
    for one in job.request.explain:
        job.report.explained.append(job.report.explain(context, one))
