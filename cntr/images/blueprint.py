"""The data from which a stand-in is made: what an engine's or image's configuration says about the missing process."""

from __future__ import annotations

from cntr.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cntr.images import Image
    from cntr.images.disk import Disk

# chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap
DEFAULT_CAPABILITIES = 0xA80425FB
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi "
    "/proc/timer_list /proc/timer_stats /sys/firmware /sys/devices/virtual/powercap"
).split()
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()


class Mount:
    """A mount of the container's: kind is bind or tmpfs; source: the host's path of a bind; options: as mount(8) has them."""

    __slots__ = ("destination", "kind", "options", "read_only", "source")

    def __init__(
        self, kind: str, source: str, destination: str, *, read_only: bool = False, options: list[str] | None = None
    ) -> None:
        """options: the last of each kind counts; those that are not known are passed over."""
        self.kind, self.source, self.destination, self.read_only = kind, source, destination, read_only
        self.options = options or []


class Blueprint:
    """See the module. Ids are those of the container's user namespace; maps are rows (inside, outside, count), none for the host's.

    lower: overlayfs' lower directories, topmost first; upper, work: the container's own layer; overlay: its mount options.
    disk: an image whose file system is the one lower layer.
    memory, pids: limits, in bytes and processes, 0 for none.
    served: whether fuse-overlayfs mounts its layers (it has marks of its own for what a layer hides).
    shift: whether the files on the disk are not shifted by the maps, so that mounts of them have to be (mount_setattr(2), IDMAP).
    user: as the configuration has it (NAME|UID[:GROUP]); join: namespaces of others, kind → path; state: exited, created, image, …
    """

    __slots__ = (
        *(
            "ambient",
            "argv",
            "capabilities",
            "directory",
            "engine",
            "environment",
            "gid_map",
            "health",
            "hostname",
            "id",
        ),
        *(
            "image",
            "join",
            "limits",
            "log",
            "lower",
            "masked",
            "memory",
            "more",
            "mounts",
            "name",
            "no_new_privs",
            "oom_killed",
            "pids",
        ),
        *(
            "oom_score_adj",
            "overlay",
            "owner",
            "privileged",
            "read_only",
            "read_only_paths",
            "seccomp",
            "served",
            "share",
            "shift",
            "state",
        ),
        *("status", "uid_map", "upper", "user", "work", "entrypoint", "check", "groups", "closers"),
        *("apparmor", "disk", "exact", "faults", "left_out", "own_group", "own_name", "shm", "sysctls", "umask"),
    )

    def __init__(self, engine: str, name: str) -> None:
        """Docker's defaults."""
        self.engine, self.name, self.id, self.image, self.state, self.owner = engine, name, "", "", "image", 0
        self.lower: list[str] = []
        self.upper = self.work = ""
        self.disk: Disk | None = None
        self.overlay: dict[str, str] = {}
        self.entrypoint: list[str] = []
        self.argv: list[str] = []
        self.environment: dict[str, str] = {}
        self.directory, self.user, self.hostname = "/", "", ""
        self.groups: list[str] = []
        self.own_group = False  # whether its group is among its supplementary ones, too
        self.own_name = False  # whether its engine adds its name to hosts(5) at each start, and removes it at the end
        self.umask = 0o022
        self.shm = 64 << 20  # of /dev/shm, in bytes
        self.mounts: list[Mount] = []
        self.capabilities, self.ambient = DEFAULT_CAPABILITIES, 0
        self.no_new_privs = self.read_only = self.privileged = self.served = self.shift = False
        self.limits: dict[str, tuple[int, int]] = {}
        self.oom_score_adj = self.memory = self.pids = 0
        self.uid_map: list[tuple[int, int, int]] = []
        self.gid_map: list[tuple[int, int, int]] = []
        self.share: set[str] = set()  # namespaces that are the host's
        self.join: dict[str, str] = {}
        self.masked, self.read_only_paths = list(MASKED), list(READ_ONLY)
        self.seccomp: object = None  # an OCI profile, None for Docker's default, "unconfined"
        self.sysctls: dict[str, str] = {}  # of its own namespaces
        self.apparmor = ""  # its profile; "" or unconfined for none
        self.health: list[str] = []
        self.exact = (
            False  # what its engine would not start it with is an error; otherwise it is left out and listed as a fault
        )
        self.faults: list[str] = []
        self.left_out: list[str] = []  # what a stand-in lacks
        self.check: Callable[[], bool] | None = None  # whether the engine has started it meanwhile
        self.status: int | None = None
        self.oom_killed: bool | None = None  # None: unknown
        self.more: Callable[[], None] | None = None  # collects what takes long: how it ended
        self.log: Callable[[], list[str]] | None = None
        self.closers: list[Callable[[], object]] = []  # keep the lower directories available

    def label(self) -> str:
        """``engine:name``, fit for a terminal."""
        return printable(f"{self.engine}:{self.name}")

    def command(self) -> list[str]:
        """The command that would run: entrypoint and arguments."""
        return [*self.entrypoint, *self.argv]

    def close(self) -> None:
        """Release what the lower directories need."""
        while self.closers:
            self.closers.pop()()

    def take_config(self, config: dict[str, Any]) -> None:
        """Apply an OCI image configuration (Docker's Config has the same names). Values of a wrong type are ignored."""
        self.entrypoint = words(config.get("Entrypoint"))
        self.argv = words(config.get("Cmd"))
        for setting in words(config.get("Env")):
            key, equals, value = setting.partition("=")
            if key and equals and "\0" not in setting:
                self.environment.setdefault(key, value)
        self.environment.setdefault("PATH", DEFAULT_PATH)
        directory, user = config.get("WorkingDir"), config.get("User")
        self.directory = directory if isinstance(directory, str) and directory.startswith("/") else "/"
        self.user = user if isinstance(user, str) else ""
        check = config.get("Healthcheck")
        self.health = words(check.get("Test")) if isinstance(check, dict) else []


def words(value: object) -> list[str]:
    """A list of strings without NUL; a single string is a shell command, as in a Dockerfile."""
    if isinstance(value, str):
        return ["/bin/sh", "-c", value] if value and "\0" not in value else []
    if not isinstance(value, list) or not all(isinstance(one, str) and "\0" not in one for one in value):
        return []
    return list(value)


def named(engine: str, name: str) -> Blueprint:
    """The blueprint of a stopped container whose engine knows it by its name only."""
    made = Blueprint(engine, name)
    made.id, made.state = name, "stopped"
    return made


def of_image(image: Image) -> Blueprint:
    """The blueprint of a container that `docker run IMAGE` would start."""
    kind = image.engine if image.engine in ("archive", "oci", "dir") else "image"
    made = Blueprint(kind, image.reference)
    made.id, made.image, made.owner = image.id, image.reference, image.owner
    made.take_config(image.config)
    made.hostname, made.own_group = "image", True
    return made
