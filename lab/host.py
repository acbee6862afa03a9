"""What the lab needs from the host, found out by trying; whatever is missing comes with its fix."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

from . import paths
from .errors import LabError


@dataclasses.dataclass(frozen=True)
class Check:
    """One requirement. `needed`: without it no machine can run here."""

    what: str
    ok: bool
    seen: str
    purpose: str
    fix: str
    needed: bool = True


TOOLS = {
    # tool: (Debian package, what for, drivers that need it)
    "mmdebstrap": ("mmdebstrap", "building boxes", ("qemu", "vagrant")),
    "mke2fs": ("e2fsprogs", "building boxes", ("qemu", "vagrant")),
    "qemu-img": ("qemu-utils", "disks", ("qemu", "vagrant")),
    "qemu-system-x86_64": ("qemu-system-x86", "machines", ("qemu", "vagrant")),
    "ssh-keygen": ("openssh-client", "the lab's key", ("qemu", "vagrant")),
    "vagrant": ("vagrant vagrant-libvirt", "--driver vagrant", ("vagrant",)),
    "libvirtd": ("libvirt-daemon libvirt-daemon-driver-qemu", "--driver vagrant", ("vagrant",)),
    "virsh": ("libvirt-clients", "--driver vagrant", ("vagrant",)),
}
MODULES = ("fabric", "testinfra", "pytest", "xdist")
DISK_GIB = 8
MEMORY_MIB = 3000


def require(driver: str) -> None:
    """Fail early, with one command that fixes everything. Raises LabError if a tool for this driver is missing."""
    lacking = [package for tool, (package, _, drivers) in TOOLS.items() if driver in drivers and not shutil.which(tool)]
    if lacking:
        packages = " ".join(dict.fromkeys(lacking))
        raise LabError(f"the {driver} driver lacks {packages}", f"apt-get install --no-install-recommends {packages}")


def checks() -> list[Check]:
    """All checks, in the order in which their subjects are needed."""
    found = []
    for tool, (package, purpose, drivers) in TOOLS.items():
        path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
        fix = f"apt-get install --no-install-recommends {package}"
        found.append(Check(tool, bool(path), path or "not installed", purpose, fix, needed="qemu" in drivers))
    found.append(_vagrant_plugin())
    found += [_module(name) for name in MODULES]
    found += [_room(), _memory(), _kvm(), _namespaces()]
    return found


def _module(name: str) -> Check:
    import importlib.util

    ok = importlib.util.find_spec(name) is not None
    return Check(
        f"Python module {name}", ok, "found" if ok else "not found", "scenarios", "pip install 'cntr-attach[lab]'"
    )


def _vagrant_plugin() -> Check:
    plugin = None
    for place in ("/usr/share/rubygems-integration/all/specifications", str(Path.home() / ".vagrant.d/gems")):
        plugin = (
            plugin or next(iter(Path(place).rglob("vagrant-libvirt-*.gemspec")), None)
            if Path(place).is_dir()
            else plugin
        )
    return Check(
        "vagrant-libvirt", plugin is not None, plugin.name.removesuffix(".gemspec") if plugin else "not installed",
        "--driver vagrant", "apt-get install --no-install-recommends vagrant-libvirt", needed=False,
    )  # fmt: skip


def _room() -> Check:
    place = paths.cache_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free >> 30
    return Check(
        f"{DISK_GIB} GiB of disk",
        free >= DISK_GIB,
        f"{free} GiB free at {place}",
        "boxes and machines",
        "set CNTR_LAB_CACHE to a place with more space",
    )


def _memory() -> Check:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
    return Check(
        f"{MEMORY_MIB} MiB of memory",
        available >= MEMORY_MIB,
        f"{available} MiB available",
        "one machine",
        "end something large",
    )


def _kvm() -> Check:
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    seen = (
        "/dev/kvm opens (whether it boots a kernel is tried before the first run)"
        if usable
        else "not usable: machines run under TCG, ~6× slower"
    )
    return Check(
        "KVM", usable, seen, "speed", "adduser $USER kvm, or turn on virtualisation in the firmware", needed=False
    )


def _namespaces() -> Check:
    if os.geteuid() == 0:
        return Check("root or user namespaces", True, "root", "building boxes", "")
    done = subprocess.run(["unshare", "--map-auto", "--map-root-user", "true"], capture_output=True, check=False)
    seen = "unshare works" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()
    return Check(
        "root or user namespaces",
        done.returncode == 0,
        seen,
        "building boxes",
        "apt-get install uidmap, and a range for you in /etc/subuid; or run as root",
    )
