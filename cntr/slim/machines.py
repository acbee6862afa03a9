"""The root of a machine that does not run, as an image: a disk image (``raw:NAME``); directories of
nspawn, LXC and Incus; Buildah's working containers. No engine runs it, and nothing of it is
changed.
"""

from __future__ import annotations

import os

from cntr.errors import CntrError, TargetNotFound, printable
from cntr.images import targets
from cntr.linux import namespaces
from cntr.slim import overlay
from cntr.slim.runs import Image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.images.blueprint import Blueprint

KINDS = (targets.RAW, "nspawn", "lxc", "lxd", "incus", "buildah")
_FIRST_USERS = 0xEFFFFFFD  # PROC_USER_INIT_INO, linux/proc_ns.h


def find(text: str) -> tuple[Image, int]:
    """The machine TEXT (PREFIX:NAME) as an image, and an fd of its root. Raises CntrError."""
    if os.stat("/proc/self/ns/user").st_ino != _FIRST_USERS:
        raise CntrError(
            f"{printable(text[:200])}: slim of a machine takes root", "as root; or dir:ROOT for a directory of yours"
        )
    made = targets.find(text)
    if made is None:
        raise TargetNotFound(
            f"{printable(text[:200])}: no machine of that name that does not run",
            "`cntr ps --all` lists them; one that runs is stopped first",
        )
    try:
        if made.owner:
            raise CntrError(f"{made.label()} is a user's, and root does not split it", "as that user: dir:ROOT")
        if made.served:
            raise CntrError(f"{made.label()}: its layers are fuse-overlayfs'", "commit it, then slim the image")
        return _image(made), _root(made)
    finally:
        made.close()


def _image(made: Blueprint) -> Image:
    settings = {
        "Entrypoint": made.entrypoint,
        "Cmd": made.argv,
        "Env": [f"{key}={value}" for key, value in made.environment.items()],
        "User": made.user,
        "WorkingDir": made.directory,
    }
    return Image(
        made.engine, made.name, made.id, {"config": {key: value for key, value in settings.items() if value}}, []
    )


def _root(made: Blueprint) -> int:
    """The root, read-only, with the ids that the machine's own processes see."""
    users = -1
    try:
        if made.disk:
            tree = made.disk.mount(programs=True)  # CntrFS refuses what the mount that it serves would refuse
            try:
                return os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                os.close(tree)
        if made.uid_map and not made.shift:
            maps = (made.uid_map, made.gid_map)
            users = namespaces.mapped(*("".join(f"{out} {own} {count}\n" for own, out, count in rows) for rows in maps))
        return overlay.merged([*reversed(made.lower), *([made.upper] if made.upper else [])], users)
    except OSError as error:
        raise CntrError(f"{made.label()}: its root: {error.strerror}", "`cntr inspect` shows where it lies") from None
    finally:
        if users >= 0:
            os.close(users)
