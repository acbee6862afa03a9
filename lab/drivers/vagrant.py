"""Machines by Vagrant and libvirt. The only module that calls vagrant; the Vagrantfile gets everything through its
environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .. import boxbuild, libvirtd, paths
from ..accel import EMULATED_CPU, Accelerator, choose
from ..errors import LabError
from ..table import load
from . import base

PLUGIN_PLACES = ("/usr/share/rubygems-integration/all/specifications",)
UP_SECONDS = 2400
BOOT_SECONDS = 1800
"""How long vagrant itself waits for SSH: longer than the lab, which watches the console and takes the load into
account.
"""


def missing() -> str:
    """What is missing to use vagrant; empty if nothing."""
    for tool in ("vagrant", "virsh"):
        if not shutil.which(tool):
            return tool
    places = [*(Path(p) for p in PLUGIN_PLACES), vagrant_home() / "gems", Path.home() / ".vagrant.d/gems"]
    if not any(next(place.rglob("vagrant-libvirt-*.gemspec"), None) for place in places if place.is_dir()):
        return "vagrant-libvirt"
    return "" if shutil.which("libvirtd") or os.environ.get("LIBVIRT_DEFAULT_URI") else "libvirtd"


def vagrant_home() -> Path:
    """Vagrant's own state, in the lab's cache, separate from the user's boxes and plugins."""
    return paths.cache_dir() / "vagrant.d"


def choice(built: dict[str, str], accelerator: Accelerator, uri: str, prefix: str, **more: object) -> dict[str, object]:
    """The content of CNTR_LAB_VAGRANT, for the Vagrantfile."""
    return {
        "boxes": built,
        "accelerator": accelerator.name,
        # libvirt would check each word with its own probing of QEMU. QEMU uses the last -cpu.
        "qemu_args": [] if accelerator.name == "kvm" else ["-cpu", EMULATED_CPU],
        "boot_timeout": BOOT_SECONDS,
        "uri": uri,
        "prefix": prefix,
        **more,
    }


def add_box(built: boxbuild.BuiltBox) -> str:
    """Add a box to Vagrant, once per build; return its name there."""
    import fcntl

    name = built.vagrant_name
    vagrant_home().mkdir(parents=True, exist_ok=True)
    with (vagrant_home() / "lab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (vagrant_home() / "boxes" / name.replace("/", "-VAGRANTSLASH-")).is_dir():
            archive = boxbuild.ensure_vagrant_box(built)
            print(f"lab: vagrant box add {name}", flush=True)
            _vagrant(["box", "add", "--name", name, "--provider", "libvirt", str(archive)], {}, 600)
            archive.unlink()  # Vagrant has unpacked it; it can be packed again
    return name


def environment_by_hand() -> dict[str, object]:
    """For `vagrant up NAME` by hand: build and add boxes, start the lab's libvirtd, build cntr's wheel."""
    import contextlib
    import sys

    from ..wheel import build_wheel

    with contextlib.redirect_stdout(sys.stderr):  # only the JSON goes to stdout
        found = {name: built for name, box in load().boxes.items() if (built := boxbuild.cached(box))}
        if not found:
            first = next(iter(load().boxes.values()))
            found[first.name] = boxbuild.ensure(first)
        # By name only: `vagrant box add` happens under the user's VAGRANT_HOME, by box_url.
        accelerator = choose(next(iter(found.values())))
        home = Path(os.environ.get("VAGRANT_HOME", Path.home() / ".vagrant.d"))
        for built in found.values():
            if not (home / "boxes" / built.vagrant_name.replace("/", "-VAGRANTSLASH-")).is_dir():
                archive = boxbuild.ensure_vagrant_box(built)
                line = ["vagrant", "box", "add", "--name", built.vagrant_name, "--provider", "libvirt", str(archive)]
                subprocess.run(line, cwd="/", stdout=sys.stderr, check=True)
        boxes = {name: built.vagrant_name for name, built in found.items()}
        return choice(boxes, accelerator, libvirtd.uri(), "cntr-hand-", provision=True, wheel=str(build_wheel()))


class VagrantDriver:
    """One machine of the Vagrantfile; see `base.Driver`."""

    name = "vagrant"
    is_resumed = False

    def __init__(self, plan: base.Plan) -> None:
        if plan.built is None or plan.accelerator is None:
            raise LabError("the vagrant driver needs a box and an accelerator")
        self._plan, self._built, self._accelerator = plan, plan.built, plan.accelerator
        self._dir = plan.run_dir
        self.endpoint: base.Endpoint | None = None

    @property
    def _prefix(self) -> str:
        # The domain's name consists of this and the machine's name, unique among all labs that share a libvirt.
        return f"cntr-lab-{self._dir.name}-"

    @property
    def _domain(self) -> str:
        return f"{self._prefix}{self._plan.spec.name}"

    def _environment(self) -> dict[str, str]:
        state = base.read_state(self._dir)
        told = choice(
            {self._plan.spec.box: self._built.vagrant_name},
            self._accelerator,
            self._plan.libvirt_uri,
            self._prefix,
            ports={self._plan.spec.name: state.get("port", 0)},
            console=str(self._dir / "console.log"),
            cpus=self._plan.spec.cpus,
        )
        return {"CNTR_LAB_VAGRANT": json.dumps(told), "VAGRANT_DOTFILE_PATH": str(self._dir / "vagrant")}

    def up(self) -> base.Endpoint:
        """`vagrant up` without provisioning. Raises LabError with vagrant's last lines."""
        add_box(self._built)
        port = int(str(base.read_state(self._dir).get("port", 0))) or base.free_port()
        base.write_state(self._plan, self.name, port=port, uri=self._plan.libvirt_uri)
        if "cntr-lab/libvirt" in self._plan.libvirt_uri:
            libvirtd.ensure()  # again: another lab may have ended an idle daemon in between
        _vagrant(
            ["up", self._plan.spec.name, "--no-provision", "--provider", "libvirt"], self._environment(), UP_SECONDS
        )
        self.endpoint = base.Endpoint("127.0.0.1", port, boxbuild.private_key())
        return self.endpoint

    def booted(self, hang_up: Callable[[], None]) -> None:
        """Does nothing: no state is kept."""

    def snapshot(self, name: str) -> None:
        """`vagrant snapshot save`: disk and memory, by libvirt."""
        _vagrant(["snapshot", "save", self._plan.spec.name, name, "--force"], self._environment(), 180)

    def restore(self, name: str) -> None:
        """Restore a state with libvirt's own command: `vagrant snapshot restore` waits for a boot that does not happen."""
        self._virsh("snapshot-revert", self._domain, name, "--running", "--force", seconds=120)

    def leave(self) -> None:
        """libvirt keeps it running."""

    def destroy(self) -> None:
        """`vagrant destroy`; if that fails, use libvirt directly; then remove the files."""
        if (self._dir / "vagrant").exists():
            try:
                _vagrant(["destroy", "-f", self._plan.spec.name], self._environment(), 180)
            except LabError:
                for words in (
                    ("destroy", self._domain),
                    ("undefine", self._domain, "--snapshots-metadata", "--remove-all-storage"),
                ):
                    try:
                        self._virsh(*words, seconds=60)
                    except LabError as error:
                        print(f"lab: {error.message}", flush=True)
        base.remove_run_dir(self._dir)
        if "cntr-lab/libvirt" in self._plan.libvirt_uri:
            libvirtd.stop_if_idle()

    def alive(self) -> bool:
        """Whether libvirt says it runs."""
        try:
            return "running" in self._virsh("domstate", self._domain, seconds=30)
        except LabError:
            return False

    def console(self) -> str:
        """The serial console's log."""
        try:
            return (self._dir / "console.log").read_text(errors="replace")
        except OSError:
            return ""

    def _virsh(self, *words: str, seconds: float) -> str:
        command = ["virsh", "-q", "-c", self._plan.libvirt_uri, *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise LabError(f"virsh {words[0]} did not end within {seconds:.0f} s") from None
        if done.returncode != 0:
            raise LabError(f"virsh {words[0]} on {self._domain}: {done.stderr.strip()}")
        return done.stdout


def _vagrant(words: list[str], environment: dict[str, str], seconds: float) -> str:
    """Run vagrant in the repository. Raises LabError with its last lines."""
    variables = {
        **os.environ,
        "VAGRANT_HOME": str(vagrant_home()),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_NO_COLOR": "1",
        **environment,
    }
    # `box` needs no Vagrantfile, and ours would ask the lab for boxes.
    place = paths.REPOSITORY if environment else Path("/")
    process = subprocess.Popen(
        ["vagrant", *words], cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        # It is not in our process group, so Ctrl-C reaches only us and the machine can be destroyed properly.
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise LabError(
                f"vagrant {words[0]} did not end within {seconds:.0f} s", "--driver qemu needs no vagrant"
            ) from None
        raise
    if process.returncode != 0:
        # Vagrant prints its progress first ("==> name: …") and then the error.
        own = [line for line in said.splitlines() if line.strip() and not line.startswith(("==>", "    "))]
        reason = " ".join(own[:3])[:400] or "no word"
        raise LabError(f"vagrant {words[0]} failed: {reason}", f"all it said:\n{said.strip()[-3000:]}")
    return said
