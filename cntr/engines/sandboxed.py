"""gVisor, Kata Containers, Firecracker and other VMs: found by name, so that the refusal can say what they are.

Their workloads are not processes of this host, so there is nothing to join. gVisor's gofer sees the container's files,
so these are accessible (``cntr cp``, ``cntr mount``); a VM's are inside the VM.
"""

from __future__ import annotations

from cntr.engines import evidence, pids, store
from cntr.engines.container import Container, Refused

RUNSC = "gvisor"
VMS = {  # the VMM's program → (engine, the option that names the machine)
    "firecracker": ("firecracker", "--id"),
    "containerd-shim-kata-v2": ("kata", "-id"),
    "qemu-system-x86_64": ("qemu", "-name"),
    "qemu-system-aarch64": ("qemu", "-name"),
    "cloud-hypervisor": ("cloud-hypervisor", "--api-socket"),
}


def find(name: str, deadline: float) -> list[Container]:
    """The gVisor sandboxes of that name or id prefix."""
    return [found for found in _gvisor() if store.answers_to(name, found.id, [found.name])]


def find_by_process(name: str, deadline: float) -> list[Container]:
    """The virtual machines of that name or id prefix."""
    return [found for found in _virtual_machines() if store.answers_to(name, found.id, [found.name])]


def containers(deadline: float) -> list[Container]:
    """All running sandboxes."""
    return _gvisor() + _virtual_machines()


def _gvisor() -> list[Container]:
    found, refused = [], None
    for root in store.roots("runsc", "/run/runsc", "/var/run/runsc", "/run/containerd/runsc"):
        try:
            names = store.listdir(root)
        except OSError as error:
            refused = Refused(f"{root}: {error.strerror}")
            continue
        for name in names:
            if not name.endswith(".state"):
                continue
            try:
                record = store.load(f"{root}/{name}")
                pid, gofer = int(record["sandbox"]["pid"]), int(record.get("goferPid") or 0)
                id = str(record["id"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if evidence.sandbox(pid) == "gVisor":
                rootfs = f"/proc/{gofer}/root" if pids.start_time(gofer) else ""
                start = pids.start_time(pid)
                found.append(Container(RUNSC, id, pid, id=id, state="sandboxed", start_time=start, rootfs=rootfs))
    if refused and not found:
        raise refused
    return found


def _virtual_machines() -> list[Container]:
    found = []
    for program, (engine, option) in VMS.items():
        for pid, arguments in evidence.processes_named(program):
            value = evidence.option(arguments, option)
            name = value.removeprefix("guest=").split(",")[0].rpartition("/")[2]
            if name:
                start = pids.start_time(pid)
                owner = max(evidence.uid_of(pid), 0)
                found.append(Container(engine, name, pid, id=name, state="sandboxed", owner=owner, start_time=start))
    return found
