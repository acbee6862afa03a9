"""Finds a container that exists for one session: a stand-in for a stopped container, or for an image."""

from __future__ import annotations

import os
import sys
import time

from cntr import engines, images
from cntr.engines import Container, Refused, names, registry, store
from cntr.engines.answer import LATE
from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound, printable
from cntr.images import blueprint, ids
from cntr.images.standin import OWN_FILES, StandIn
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from cntr.images.blueprint import Blueprint

    class StoppedModule(Protocol):
        """The functions of each engine's module."""

        def find(self, name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
            """The containers that NAME means. running: include running ones."""

        def stopped(self, deadline: float) -> list[Blueprint]:
            """All stopped containers."""


SECONDS = 10.0
RESTART_SECONDS = 2.0
RAW = "raw"  # the prefix that lets the kernel read a disk image's file system
MODULES = {
    **{"docker": "docker_stopped", "podman": "podman_stopped", "containerd": "containerd_stopped"},
    **{"lxc": "lxc_stopped", "nspawn": "nspawn_stopped", "buildah": "buildah_stopped"},
}
ALIASES = {
    **dict.fromkeys(("k8s", "kubernetes", "cri", "crio", "cri-o", "nerdctl", "ctr"), "containerd"),
    **dict.fromkeys(("lxd", "incus"), "lxc"),
    RAW: "nspawn",
}


def find(target: str, *, running: bool = False, late: tuple[str, ...] = ()) -> Blueprint | None:
    """The blueprint of an image, or of the one stopped container of that name; None if there is none. Raises CntrError.

    late: engines that did not answer the previous lookup, and are not asked again.
    """
    if target.partition(":")[0] in OWN_FILES and images.is_reference(target):
        return _image(target)
    with VIEW:
        return _image(target) if images.is_reference(target) else _stopped(target, late, running=running)


def _stopped(target: str, late: tuple[str, ...], *, running: bool) -> Blueprint | None:
    target = engines.plain(target)
    prefix, colon, rest = target.partition(":")
    engine = ALIASES.get(prefix, prefix)
    asked, name = ((engine,), rest) if colon and engine in MODULES else (tuple(MODULES), target)
    deadline = time.monotonic() + SECONDS
    known = {entry.name: entry for entry in registry.REGISTRY}
    found: list[Blueprint] = []
    failed: CntrError | None = None
    slow = [engine for engine in asked if engine in late]
    for engine in asked:
        if engine in late or not known[engine].present():
            continue
        try:
            found += module(engine).find(name, deadline, running=running)
        except CntrError as error:
            failed = failed or (_unanswered(target, engine, error.message) if len(asked) > 1 else error)
        except Refused as error:
            failed = failed or _unanswered(target, engine, str(error), error.hint)
            slow += [engine] if str(error) in LATE else []
            if isinstance(error, engines.RemoteRefused) and isinstance(failed, TargetNotFound):
                failed.elsewhere = error.host
        except OSError as error:
            slow += [engine] if isinstance(error, TimeoutError) else []
            where = f": {error.filename}" if error.filename else ""
            failed = failed or _unanswered(target, engine, f"{error.strerror or error}{where}")
    if not found and not os.geteuid():
        found, failed = _of_users(asked, name, failed, running=running)
        if found and slow:
            raise names.one_of_users(target, slow, found[0].engine, found[0].label(), found[0].owner)
    exact = [one for one in found if name in (one.name, one.id)] or found
    if len(exact) > 1:
        listed = ", ".join(f"{one.label()} ({printable(one.id[:12])})" for one in exact[:8])
        raise AmbiguousTarget(
            f"{printable(target)}: {len(exact)} containers answer to this name: {listed}", "say engine:name, or an id"
        )
    if not exact and failed:
        raise failed
    disk = exact[0].disk if exact else None
    if disk and prefix != RAW:
        disk.close()
        raise images.ImageError(
            f"{exact[0].label()}: {printable(disk.path)} is a disk image: the kernel would have to read a file system that somebody made",
            f"if you trust it: {RAW}:{printable(exact[0].name)}",
        )
    return exact[0] if exact else None


def _unanswered(target: str, engine: str, why: str, hint: str = "") -> TargetNotFound:
    """The error if one engine did not answer, and no other has the container."""
    return TargetNotFound(
        f"{printable(target[:200])}: no such container or image (refused: {engine} ({printable(why[:300])}))",
        printable(hint) or "`cntr ps --all` lists containers",
    )


def _of_users(
    asked: tuple[str, ...], name: str, failed: CntrError | None, *, running: bool
) -> tuple[list[Blueprint], CntrError | None]:
    """A user's container counts only if root has none of that name: otherwise a user could use the name of one of
    root's.
    """
    from cntr.images import of_users

    try:
        return of_users.find(asked, name, running=running), failed
    except CntrError as error:
        return [], failed or error


def module(engine: str) -> StoppedModule:
    """The module for ENGINE's stopped containers."""
    name = f"cntr.images.{MODULES[engine]}"
    __import__(name)
    return sys.modules[name]


def present() -> list[str]:
    """The engines on this machine whose stopped containers can be used."""
    known = {entry.name: entry for entry in registry.REGISTRY}
    return [engine for engine in MODULES if known[engine].present()]


def _image(reference: str) -> Blueprint:
    image = images.find(reference)
    try:
        made = blueprint.of_image(image)
        if image.engine == "dir":
            made.user = "0"
        made.lower = image.lower_directories()
        if made.lower and image.engine == "podman":
            made.overlay = {"userxattr": ""} if image.owner else {"metacopy": "on"}
        if not made.lower:
            from cntr.images import cache

            held = cache.open_tree(image)
            made.lower = [held.path]
            made.closers.append(held.close)
        return made
    finally:
        image.close()


def hold(
    target: str,
    missing: TargetNotFound | None = None,
    *,
    network: str = "",
    write: bool = False,
    running: bool = False,
    confined: bool = True,
    exact: bool = False,
    say: Callable[[str], None],
) -> tuple[Container, StandIn] | None:
    """A stand-in for TARGET and its Container, None if nobody knows it. The caller closes the stand-in. Raises
    CntrError.

    missing: the error of the lookup among running containers, with each engine's answer; exact: see ``Blueprint``.
    """
    try:
        made = find(target, running=running, late=missing.late if missing else ())
        end = time.monotonic() + RESTART_SECONDS
        while made is None and missing and missing.restarting and time.monotonic() < end:
            time.sleep(0.02)  # it just ran, so it is about to end again
            made = find(target, running=running, late=missing.late)
    except TargetNotFound as error:
        raise missing or error from None
    if made is None:
        return None
    made.exact = exact
    try:
        stand_in = start(made, network=network, write=write, confined=confined, say=say)
    except BaseException:
        made.close()
        raise
    container = Container(
        made.engine,
        made.name,
        stand_in.pid,
        id=made.id,
        image=made.image,
        state=made.state,
        owner=made.owner,
        start_time=stand_in.start_time,
    )
    container.filter = stand_in.filter
    container.digest = made.id if made.id.startswith("sha256:") else ""
    return container, stand_in


def start(
    made: Blueprint, *, network: str = "", write: bool = False, confined: bool = True, say: Callable[[str], None]
) -> StandIn:
    """Start the stand-in of a blueprint (see ``StandIn``). Raises CntrError."""
    if write and made.state == "image":
        raise CntrError(f"{made.label()}: an image is never written", "leave out --write: changes are discarded")
    if write and made.disk:
        raise CntrError(
            f"{made.label()}: a disk image is never written to: that would replay its journal, and its machine could start",
            "leave out --write, or `systemd-dissect --mount`",
        )
    if made.engine in OWN_FILES:
        made.owner = os.geteuid()  # a user's own archive, or directory
    if made.owner:
        # A user's engine or store: never with the host's root rights.
        with VIEW:
            for name in ("uid", "gid"):
                rows = getattr(made, f"{name}_map")
                if rows and made.engine == "lxc":  # it stores the host's ids
                    rows = ids.into_rootless(rows, f"/etc/sub{name}", made.owner)
                    if not rows:
                        raise CntrError(
                            f"{made.label()}: its {name} map is none of {store.owner_name(made.owner)}'s",
                            f"/etc/sub{name} lists what a user may map",
                        )
                setattr(made, f"{name}_map", ids.of_rootless(rows, f"/etc/sub{name}", made.owner))
    return StandIn(made, network=network, write=write, confined=confined, say=say)


def resolve(
    target: str, *, write: bool = False, confined: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Container, StandIn | None]:
    """TARGET as it runs, or a stand-in for it, which the caller closes. Raises TargetNotFound, AmbiguousTarget,
    CntrError.
    """
    missing: TargetNotFound | None = None
    if not images.is_reference(target):
        try:
            return engines.resolve(target), None
        except TargetNotFound as error:
            missing = error
    held = hold(target, missing, write=write, confined=confined, say=say)
    if held is None:
        raise missing or TargetNotFound(
            f"{printable(target[:200])}: no such image", "image:NAME, archive:FILE, oci:DIR, dir:PATH"
        )
    return held


def stopped() -> list[Blueprint]:
    """All stopped containers, with engine, name, id, image and state only; engines that cannot be asked are left out."""
    deadline = time.monotonic() + SECONDS
    found: list[Blueprint] = []
    with VIEW:
        for engine in present():
            try:
                found += module(engine).stopped(deadline)
            except (Refused, CntrError, OSError):
                continue
        if not os.geteuid():
            from cntr.images import of_users

            found += of_users.stopped()
    return found


def stopped_rows() -> list[tuple[object, ...]]:
    """The same as rows of ``cntr ps``: engine, name, id, no pid, state, owner, no user namespace, image."""
    return [
        (made.engine, made.name, made.id[:12], None, made.state, store.owner_name(made.owner), None, made.image)
        for made in stopped()
    ]
