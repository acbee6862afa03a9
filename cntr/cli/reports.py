"""``cntr ps``, ``inspect`` and ``doctor``."""

from __future__ import annotations

import errno
import os

from cntr import engines
from cntr.attach import cgroup, etc_files, identity, nest, view
from cntr.attach.target import CAP_SYS_PTRACE, Target, capability_names
from cntr.cli import confinement
from cntr.cli.table import Report
from cntr.engines import listing, store
from cntr.errors import EXIT_FAILED, CntrError, printable, with_sudo
from cntr.linux import namespaces, procfs, syscalls
from cntr.linux.namespaces import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def ps(*, stopped: bool = False) -> Report:
    """The running containers of every engine; stopped: also those that do not run."""
    report = Report("engine", "name", "id", "pid", "state", "owner", "userns", "image")
    found, answers = listing.running()
    for container in found:
        report.add(
            *(container.engine, listing.shown_name(container), container.id[:12], container.pid, container.state),
            *(store.owner_name(container.owner), _user_namespace(container.pid), container.image),
        )
    if stopped:
        from cntr.images import targets

        for row in targets.stopped_rows():
            report.add(*row)
    for answer in answers:
        if answer.elsewhere and not answer.owner:
            report.elsewhere = answer.elsewhere
        elif answer.refused:
            whose = f" of {store.owner_name(answer.owner)}" if answer.owner else ""
            report.footer.append(f"{answer.entry.name}{whose}: did not answer: {printable(answer.refused[:300])}")
    if not report.rows:
        asked = ", ".join(answer.entry.name for answer in answers) or "no engine is here"
        report.footer.insert(0, f"no running containers (asked: {asked})")
    return report


def _user_namespace(pid: int) -> str:
    """``own`` for a container with a user namespace of its own, ``host`` for one without, "" if unknown."""
    try:
        own = os.stat("/proc/self/ns/user")
        return "host" if os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), own) else "own"
    except OSError:
        return ""


def inspect(name: str) -> Report:
    """What a session takes from the target, property by property; for a stopped container, what it had. Raises
    CntrError.
    """
    from cntr.images import entrypoint, targets

    container, stand_in = targets.resolve(name, confined=True)
    report = Report("property", "value", "inherited", "why")
    try:
        engines.verify(container)
        for key, value in entrypoint.describe(stand_in.pid, stand_in.blueprint) if stand_in else ():
            report.add(key, value, None, None)
        return _inspect(report, Target(container, impatient=True))
    finally:
        if stand_in:
            stand_in.close()


def _inspect(report: Report, target: Target) -> Report:
    try:
        report.add(
            "process", target.pid, "yes", f"{target.label}: {printable(procfs.read('comm', target.proc_fd).strip())}"
        )
        for line in engines.notes(target.container):
            report.add("note", line, "", "")
        _inspect_namespaces(report, target)
        _inspect_cgroups(report, target)
        _inspect_identity(report, target)
        _inspect_limits(report, target)
        _inspect_environment(report, target)
        _inspect_files(report, target)
        _inspect_tools(report)
    finally:
        target.close()
    return report


def _inspect_namespaces(report: Report, target: Target) -> None:
    for kind in KINDS:
        # An owner without root has entered the user namespace, so it no longer differs from ours.
        if kind.name in target.namespaces or (kind.name == "user" and target.as_owner):
            link = os.readlink(f"ns/{kind.name}", dir_fd=target.proc_fd)
            why = (
                "the session's is nested: a private copy of the tools', with the container's tree in it"
                if kind.name == "mnt"
                else ""
            )
            report.add(f"namespace {kind.name}", link, "no" if kind.name == "mnt" else "yes", why)
        else:
            report.add(f"namespace {kind.name}", "the caller's", "yes", "the container shares it with the caller")


def _inspect_cgroups(report: Report, target: Target) -> None:
    own, info = procfs.read("/proc/self/cgroup"), procfs.read("/proc/self/mountinfo")
    found, unreachable = cgroup.memberships(procfs.read("cgroup", target.proc_fd), own, info)
    frozen = any(membership.frozen for membership in found)
    for membership in found:
        writable = os.access(f"{membership.directory}/cgroup.procs", os.W_OK)
        why = "frozen: joining would freeze the session" if frozen else "" if writable else "not writable for this user"
        report.add(f"cgroup {membership.label()}", membership.directory, "no" if why else "yes", why)
    for controllers in unreachable:
        report.add(f"cgroup {controllers}", None, "no", "its hierarchy is not mounted here")
    if not found and not unreachable:
        report.add("cgroup", "the caller's", "yes", "the container is in the caller's cgroups")


def _inspect_identity(report: Report, target: Target) -> None:
    user = identity.user_of(target, None)
    report.add(
        "uid",
        user.uid,
        "yes",
        f"uid {target.uids[1]} of the caller's user namespace" if user.uid != target.uids[1] else "",
    )
    report.add("gid", user.gid, "yes", "")
    unmapped = len(target.groups) - len(user.groups or [])
    why = f"{unmapped} not mapped in the user namespace" if unmapped else ""
    report.add("groups", " ".join(map(str, user.groups or [])), "partly" if unmapped else "yes", why)
    for name in ("permitted", "effective", "inheritable", "bounding", "ambient"):
        names = capability_names(getattr(target, name))
        value = "all" if len(names) > 39 else " ".join(names) or "none"
        added = "" if getattr(target, name) & CAP_SYS_PTRACE or name in ("inheritable", "ambient") else (
            "and sys_ptrace: what keeps the container's processes from reading the session through /proc"
        )  # fmt: skip
        report.add(f"capabilities {name}", value, "yes", added)
    if (target.permitted | target.bounding) & CAP_SYS_PTRACE:
        report.add(
            "protection of the session",
            None,
            "no",
            "the container may hold sys_ptrace itself: it can reach the tools' tree",
        )
    for row in confinement.rows(target):
        report.add(*row)


def _inspect_limits(report: Report, target: Target) -> None:
    import resource

    for row in procfs.read("limits", target.proc_fd).splitlines()[1:]:
        soft, hard = row[26:].split()[:2]
        raised = (
            hard != "unlimited"
            and hard.isdecimal()
            and row.startswith("Max open files")
            and int(hard) > _hard(resource.RLIMIT_NOFILE)
        )
        report.add(
            f"limit {row[4:26].strip()}",
            f"{soft}:{hard}",
            "partly" if raised else "yes",
            "above ours: needs CAP_SYS_RESOURCE" if raised else "",
        )


def _inspect_environment(report: Report, target: Target) -> None:
    report.add(
        "environment",
        f"{len(target.environment)} variables",
        "shown",
        "in /run/cntr/environ, to be read; `-e NAME` takes one over. A session's own is an allow-list",
    )


def _hard(limit: int) -> int:
    import resource

    value = resource.getrlimit(limit)[1]
    return value if value != resource.RLIM_INFINITY else 1 << 63


def _inspect_files(report: Report, target: Target) -> None:
    for name, magic in (("proc", syscalls.PROC_SUPER_MAGIC), ("sys", syscalls.SYSFS_MAGIC)):
        why = ""
        try:
            fd = target.open_in_root(name, os.O_PATH | os.O_DIRECTORY)
            try:
                if f"/{name}" in target.slow_places or syscalls.filesystem_magic(fd) != magic:
                    why = f"the container has none mounted: a fresh one of its namespaces{', read-only' if name == 'sys' else ''}"
            finally:
                os.close(fd)
        except OSError:
            why = "the container has none: a fresh one of its namespaces"
        if name == "proc" and target.partial_proc:
            why = "the container's shows processes only (subset=pid): a fresh one of its pid namespace"
        report.add(f"/{name}", None, "no" if why else "yes", why)
    report.add("/dev", None, "no", "the session's own; the container's is below the base directory")
    for name in ("passwd", "group"):
        report.add(
            f"/etc/{name}", None, "partly", "written from its ids and safe names; homes and shells are the tools'"
        )
    for name in etc_files.COPIED:
        why = target.odd_file(f"/etc/{name}")
        report.add(f"/etc/{name}", None, "no" if why else "copy", f"{why}: the tools' own stays" if why else "")
    report.add("root, volumes", nest.base_dir(), "yes", "with all that is mounted below")


def _inspect_tools(report: Report) -> None:
    """How each mount of this machine is shown in a session."""
    for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo")):
        if mount.mount_point == "/" or view.is_shown(mount):
            fits = _can_be_idmapped(mount.mount_point)
            how = (
                "read-only, nobody's (idmapped)"
                if fits
                else "read-only, what all may read (overlaid, or the rest covered)"
            )
            report.add(f"tools {mount.mount_point}", mount.fstype, "shown", how)


def _can_be_idmapped(path: str) -> bool:
    """Try it on a detached clone, which is never mounted."""
    try:
        userns = namespaces.nobody()
        try:
            _idmap(syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE), userns)
        finally:
            os.close(userns)
    except OSError:
        return False
    return True


NEEDED_CAPABILITIES = (
    (21, "sys_admin", "needed to enter namespaces"),
    (19, "sys_ptrace", "needed to look at other users' processes"),
    (24, "sys_resource", "optional: without it a container's higher resource limits are not taken over"),
)


def doctor() -> Report:
    """What this machine supports, feature by feature."""
    report = Report("feature", "state", "fix")
    root = os.geteuid() == 0
    report.add(
        "root",
        "yes" if root else "no",
        "" if root else with_sudo("rootless containers of your own work; for all others"),
    )
    for feature, probe, fix in (
        ("mount API (open_tree, move_mount)", _probe_mount_api, "kernel 5.2 or newer, CAP_SYS_ADMIN"),
        ("mount_setattr (idmapped mounts)", _probe_mount_setattr, "kernel 5.12 or newer"),
        ("openat2 (paths never leave the container)", _probe_openat2, "kernel 5.6 or newer"),
        ("private terminals (devpts)", lambda: os.close(nest.new_devpts()), "CAP_SYS_ADMIN, and devpts in the kernel"),
        ("stand-ins (what does not run, images)", _probe_stand_ins, "x86_64 or aarch64"),
        ("idmapped mounts", _probe_idmapped_mounts, "kernel 5.12 or newer, CAP_SYS_ADMIN, user namespaces"),
    ):
        _feature(report, feature, probe, fix)
    for number, name, fix in NEEDED_CAPABILITIES:
        held = int(procfs.status(procfs.read("/proc/self/status"))["CapEff"], 16) >> number & 1
        report.add(f"CAP_{name.upper()}", "yes" if held else "no", "" if held else fix)
    _doctor_filesystem(report)
    mode = _cgroup_mode()
    fix = "mount -t cgroup2 cgroup2 /sys/fs/cgroup: without it sessions count nowhere"
    report.add("cgroups", mode, fix if mode == "not mounted" else "")
    _doctor_security(report)
    from cntr.audit import policy, session

    for row in policy.findings(session.POLICY):
        report.add(*row)
    for finding in listing.findings():
        report.add(f"engine {finding.engine}", finding.state, finding.found)
    if "no" in (report.rows[1][1], report.rows[3][1]):  # sessions work without mount_setattr too
        report.status = EXIT_FAILED
    return report


def _doctor_security(report: Report) -> None:
    """The security modules that label processes: what a session takes over from the container."""
    try:
        report.add("security modules", procfs.read("/sys/kernel/security/lsm").strip() or "none", "")
    except OSError as error:
        known = "\tsecurityfs\n" in procfs.read("/proc/filesystems")
        fix = (
            "mount -t securityfs securityfs /sys/kernel/security"
            if known
            else "none needed: this kernel has no securityfs"
        )
        report.add("security modules", "not visible", f"{error.strerror}: {fix}")


def _doctor_filesystem(report: Report) -> None:
    """What ``--transport fuse`` and ``cntr mount`` need; attach does not."""
    from cntr.cntrfs import probe

    for feature, check, fix in (
        ("/dev/fuse (--transport fuse, cntr mount)", probe.device, ""),
        ("FUSE passthrough", probe.passthrough, "without it the server copies file data; Linux 6.9, CAP_SYS_ADMIN"),
        (
            "FUSE over io_uring (-o io_uring)",
            probe.io_uring,
            f"Linux 6.14; echo Y > {probe.ENABLE_URING}; mounts do without",
        ),
        ("pyfuse3 (--binding pyfuse3)", probe.pyfuse3, ""),
    ):
        _feature(report, feature, check, fix)


def _feature(report: Report, feature: str, probe: Callable[[], str | None], fix: str) -> None:
    try:
        said = probe() or ""
    except OSError as error:
        report.add(feature, "no", f"{error.strerror}: {fix}")
    except CntrError as error:
        report.add(feature, "no", f"{error.message}: {error.hint}")
    else:
        report.add(feature, "yes", said)


def _probe_stand_ins() -> str:
    from cntr.images import standin, targets

    os.close(standin.program())
    return ", ".join(targets.present())


def _probe_mount_api() -> None:
    os.close(syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE))


def _probe_mount_setattr() -> None:
    fd = syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(fd, "", recursive=True, attr_set=syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(fd)


def _probe_idmapped_mounts() -> str:
    """mount_setattr(2) on a detached clone of /, which is never mounted; if that filesystem does not support it, on a
    new tmpfs.
    """
    userns = namespaces.nobody()
    try:
        try:
            _idmap(syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE), userns)
            return ""
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        _idmap(syscalls.new_filesystem("tmpfs", {}), userns)
    finally:
        os.close(userns)
    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    root = next((mount.fstype for mount in reversed(mounts) if mount.mount_point == "/"), "the filesystem")
    return f"for tmpfs and the like, but not for /: {root} can not be idmapped"


def _idmap(tree_fd: int, userns_fd: int) -> None:
    try:
        syscalls.mount_setattr(tree_fd, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    finally:
        os.close(tree_fd)


def _probe_openat2() -> None:
    os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, syscalls.RESOLVE_IN_ROOT))


def _cgroup_mode() -> str:
    types = {mount.fstype for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo"))}
    if {"cgroup", "cgroup2"} <= types:
        return "hybrid (v1 and v2)"
    return "v2" if "cgroup2" in types else "v1" if "cgroup" in types else "not mounted"
