"""The steps of assembling a session: the name of each, and what to do about each errno."""

from __future__ import annotations

from errno import E2BIG, EACCES, EAGAIN, EINVAL, EMFILE, ENFILE, ENOENT, ENOSPC, ENOSYS, EPERM

COMMON = {
    EPERM: "`cntr doctor` says which privilege is missing here",
    EAGAIN: "a limit on processes is reached: ulimit -u, or the container's pids.max: --no-cgroup stays outside of that",
    EMFILE: "a limit on open files is reached: ulimit -n",
    ENFILE: "the system's limit on open files is reached: fs.file-max",
    ENOSYS: "the kernel lacks this call (mount API: 5.2, openat2: 5.6, mount_setattr: 5.12)",
}
OTHERWISE = "`cntr --debug attach …` shows the whole story"


class Step:
    """One step: its name, the hint for any errno, and hints for particular ones."""

    __slots__ = ("hint", "hints", "name")

    def __init__(self, name: str, hint: str = "", hints: dict[int, str] | None = None) -> None:
        """hint: for every errno that is in neither hints nor COMMON."""
        self.name, self.hint, self.hints = name, hint, hints or {}

    def advice(self, number: int) -> str:
        """What to do about errno NUMBER."""
        if number in (EMFILE, ENFILE):  # the limit is the reason, whatever the step
            return COMMON[number]
        return self.hints.get(number) or self.hint or COMMON.get(number) or OTHERWISE


START = Step("start")
FORK = Step("start a process")
TARGET_MOUNTS = Step("enter the container's mount namespace")
COPY_TARGET = Step(
    "copy the container's mount tree",
    hints={
        EINVAL: "its root directory is gone: it has been unmounted; `cntr exec` runs what its process can still reach. "
        "If it is just being started, try again"
    },
)
TOOLS_MOUNTS = Step("enter the tools' mount namespace")
COPY_TOOLS = Step("copy the tools' mount tree")
VIEW = Step(
    "make the tools view",
    "--transport fuse makes it on any file system",
    {
        **COMMON,
        ENOSPC: "the limit of root's user namespaces is reached, perhaps by a container: user.max_user_namespaces",
    },
)
MASKS = Step("cover what only root may read", "--transport fuse makes the tools view on any file system")
SERVED = Step("mount CntrFS")
ROOT = Step("make the tools' tree the root")
TREE = Step("mount the container's tree at")
PRIVATE = Step("mount the session's own directories")
PROC = Step("mount the container's /proc")
SYS = Step("mount the container's /sys")
DEVICES = Step("mount the session's /dev")
ETC = Step("mount the session's file at")
SHARES = Step("share")
NOSUID = Step("forbid set-id programs in the session")
NAMESPACES = Step("join the container's")
OWN_ROOT = Step("enter the container's root")
CGROUP = Step("join the container's cgroup", "--no-cgroup attaches without joining it")
BOUNDING = Step("take on the container's capability bounding set")
IDS = Step("take on the container's ids")
CAPABILITIES = Step("take on the container's capabilities")
KEYRING = Step("make a session keyring")
GUARD = Step("install the session's own system call filter", "the kernel needs CONFIG_SECCOMP_FILTER")
SECCOMP = Step(
    "install the container's seccomp filter",
    "--no-seccomp runs without it: the command may then make calls that the container may not",
)
LABEL = Step("take on the container's security label", "--privileged keeps the host's label")
TERMINAL = Step("set up the terminal")
DIRECTORY = Step("change to directory", "-w takes a directory of the session; the container is at /var/lib/cntr")
OWN_DIRECTORY = Step("change to the container's directory", "-w takes a directory of the container's")
KIND = "is it an executable of this machine's kind?"
PROGRAM = {
    EACCES: "it is a directory, is not executable for this user (`chmod +x`), or is on a noexec mount",
    E2BIG: "the arguments or the variables are too long: `getconf ARG_MAX`",
    EAGAIN: COMMON[EAGAIN],
}
RUN = Step("run", KIND, {**PROGRAM, ENOENT: "is it installed on the tools' side, and in PATH?"})
NOT_THERE = "the container has no such program (arguments are words of their own): `cntr attach` brings your own tools"
RUN_OWN = Step("exec", KIND, {**PROGRAM, ENOENT: NOT_THERE})
BY_NAME = {step.name: step for step in list(globals().values()) if isinstance(step, Step)}


class Progress:
    """The current step, for the error message if it fails."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = START
