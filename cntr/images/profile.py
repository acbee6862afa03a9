"""The seccomp filter of a stopped container: the engine's own profile if it keeps one, else Docker's default.

Docker's default is the list that containers-common ships (/usr/share/containers/seccomp.json) if it is installed, else
a shorter list of calls that no container needs. libseccomp, on which every engine depends, compiles an OCI profile;
without it ``filter_of`` fails.
"""

from __future__ import annotations

from cntr.engines import store
from cntr.images import ImageError
from cntr.images.blueprint import words
from cntr.images.spec import CAPABILITIES, mapping
from cntr.linux import libseccomp
from cntr.linux.numbers import UNAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT = "/usr/share/containers/seccomp.json"
EPERM, ENOSYS = 1, 38
MACHINES = {"x86_64": ("amd64", ["x86", "x32"]), "aarch64": ("arm64", ["arm"]), "riscv64": ("riscv64", [])}
REFUSED = (
    "acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module fsconfig fsmount fsopen fspick get_kernel_syms "
    "init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount "
    "mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open pivot_root query_module quotactl "
    "quotactl_fd reboot request_key setns settimeofday swapoff swapon sysfs umount umount2 unshare uselib userfaultfd ustat vm86 vm86old"
).split()
NEW_NAMESPACES = 0x7E020000  # linux/sched.h: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
CAP_SYS_ADMIN = 1 << CAPABILITIES.index("SYS_ADMIN")


def filter_of(profile: object, capabilities: int) -> bytes:
    """The program for seccomp(2), b"" for "unconfined". profile: see Blueprint.seccomp. Raises ImageError, OSError."""
    if profile == "unconfined":
        return b""
    if isinstance(profile, str) and profile.startswith("{"):
        profile = store.parse(profile)  # Docker keeps the profile's text in the container's options
    elif profile in (None, "builtin", "default"):
        profile = _shipped(capabilities)
    if not isinstance(profile, dict):
        raise ImageError(
            "its seccomp profile is neither a JSON object nor a known word", "`docker inspect` shows SecurityOpt"
        )
    library = libseccomp.load()
    if library is None:
        raise ImageError("its seccomp profile can't be compiled: no libseccomp.so.2", "install libseccomp2")
    machine, others = MACHINES.get(UNAME, (UNAME, []))
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"))
    rules = []
    for row in profile.get("syscalls") or ():
        row = mapping(row)
        names = words(row.get("names")) if isinstance(row.get("names"), list) else []
        if names and _applies(row, machine, capabilities):
            rules.append((_action(row.get("action"), row.get("errnoRet")), names, _comparisons(row.get("args"))))
    return libseccomp.compile_rules(default, others, rules, library)


def for_runtimes(capabilities: list[str]) -> dict[str, Any]:
    """Docker's default for these capabilities (CAP_…) as ``linux.seccomp`` of an OCI runtime's configuration."""
    mask = sum(1 << CAPABILITIES.index(name.removeprefix("CAP_")) for name in capabilities)
    found = _shipped(mask)
    machine, others = MACHINES.get(UNAME, ("", []))
    default = found["defaultAction"], found.get("defaultErrnoRet", EPERM)
    rows = [
        {key: row[key] for key in ("names", "action", "args", "errnoRet") if row.get(key)}
        for row in map(mapping, found["syscalls"])
        if row.get("names")
        and _applies(row, machine, mask)
        and (row.get("action"), row.get("errnoRet", EPERM)) != default
    ]
    made = {"defaultAction": default[0], "syscalls": rows}
    if default[0] == "SCMP_ACT_ERRNO":
        made["defaultErrnoRet"] = default[1]
    if others:
        names = [UNAME, *others]
        made["architectures"] = [f"SCMP_ARCH_{name.upper()}" for name in names]
    return made


def _shipped(capabilities: int) -> dict[str, Any]:
    """The shipped list, without what Docker's default allows only with CAP_SYS_ADMIN, above all new namespaces."""
    refused = [] if capabilities & CAP_SYS_ADMIN else [*REFUSED, "clone", "clone3"]
    try:
        found = mapping(store.load(DEFAULT))
    except (OSError, ValueError):
        found = {}
    rows: list[object] = []
    for row in found.get("syscalls") or ():
        kept = [name for name in words(mapping(row).get("names")) if name not in refused]
        rows.append({**mapping(row), "names": kept})
    if not rows:
        found, rows = {"defaultAction": "SCMP_ACT_ALLOW"}, [{"names": refused[:-2], "action": "SCMP_ACT_ERRNO"}]
    if refused:
        rows.append({"names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM})
        # clone(2) without a CLONE_NEW* flag. A filter cannot see the flags of clone3(2), so that fails with ENOSYS, and
        # the C library falls back to clone.
        plain = {"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rows.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [plain]})
        rows.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    return {**found, "syscalls": rows}


def _action(name: object, number: object) -> int:
    action = libseccomp.ACTIONS.get(str(name))
    if action is None:
        raise ImageError(
            f"its seccomp profile has the unknown action {str(name)[:40]!r}",
            "kill, trap, errno, log and allow are known",
        )
    if name == "SCMP_ACT_ERRNO":
        action |= number & 0xFFFF if isinstance(number, int) else EPERM
    return action


def _applies(row: dict[str, Any], machine: str, capabilities: int) -> bool:
    """Whether a row's ``includes`` and ``excludes`` (of shipped profiles) match this machine and the capabilities."""
    includes, excludes = mapping(row.get("includes")), mapping(row.get("excludes"))

    def held(name: str) -> bool:
        name = name.removeprefix("CAP_")
        return name in CAPABILITIES and bool(capabilities >> CAPABILITIES.index(name) & 1)

    if not all(held(name) for name in words(includes.get("caps"))) or any(
        held(name) for name in words(excludes.get("caps"))
    ):
        return False
    wanted, unwanted = words(includes.get("arches")), words(excludes.get("arches"))
    return (not wanted or machine in wanted) and machine not in unwanted


def _comparisons(rows: object) -> list[libseccomp.Comparison]:
    found = []
    for row in rows if isinstance(rows, list) else ():
        row = mapping(row)
        operation = libseccomp.OPERATIONS.get(str(row.get("op")))
        numbers = [row.get(key, 0) for key in ("index", "value", "valueTwo")]
        if (
            operation is None
            or not all(isinstance(number, int) and 0 <= number < 1 << 64 for number in numbers)
            or numbers[0] > 5
        ):
            raise ImageError("its seccomp profile compares in a way that is not known", "")
        found.append((numbers[0], operation, numbers[1], numbers[2]))
    return found
