"""Machines on plain QEMU: an overlay of the box's disk, direct kernel boot, user-mode network, and QMP for control."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..boxbuild import private_key
from ..emulator import PROGRAM
from ..errors import LabError, LostMachine
from . import base

PORT_TRIES = 5
BOOTED = "booted"
DEVICES = ("virtio-blk-pci,drive=disk", "virtio-net-pci,netdev=lab", "virtio-rng-pci")


class QemuDriver:
    """One QEMU process; see `base.Driver`."""

    name = "qemu"

    def __init__(self, plan: base.Plan) -> None:
        if plan.built is None or plan.accelerator is None:
            raise LabError("the qemu driver needs a box and an accelerator")
        self._plan, self._built, self._accelerator = plan, plan.built, plan.accelerator
        self._dir = plan.run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self.is_resumed = False
        self.endpoint: base.Endpoint | None = None

    @property
    def _disk(self) -> Path:
        return self._dir / "disk.qcow2"

    def up(self) -> base.Endpoint:
        """Start QEMU. Raises LabError if it is missing or refuses."""
        for tool in (PROGRAM, "qemu-img"):
            if not shutil.which(tool):
                raise LabError(f"the qemu driver needs {tool}, which is not installed", "python -m lab doctor says how")
        self.is_resumed = False
        if not self._disk.exists():
            self._make_disk()
        said = ""
        for _ in range(PORT_TRIES):
            port = base.free_port()
            base.write_state(self._plan, self.name, port=port)
            said = self._start(port)
            if not said:
                self.endpoint = base.Endpoint("127.0.0.1", port, private_key())
                return self.endpoint
            if "forwarding rule" in said:
                continue
            if not self.is_resumed:
                break
            self._kept_boot().unlink(missing_ok=True)  # this QEMU cannot load it: boot instead
            self._disk.unlink()
            self.is_resumed = False
            self._make_disk()
        raise LabError(f"QEMU did not start machine {self._plan.spec.name}: {said}")

    def _make_disk(self) -> None:
        """Make the overlay: on a booted machine's kept state if there is one, else on the box as it was built."""
        if self._accelerator.name == "tcg" and self._kept_boot().exists():
            command = ["cp", "--reflink=auto", "--sparse=always", str(self._kept_boot()), str(self._disk)]
            self.is_resumed = subprocess.run(command, capture_output=True, check=False).returncode == 0
            if self.is_resumed:
                return
            self._disk.unlink(missing_ok=True)  # no room for it, or removed meanwhile
        box = ["-F", "qcow2", "-b", str(self._built.disk)]
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *box, str(self._disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(
                f"no disk for machine {self._plan.spec.name}: {done.stderr.strip()}", "is there space in the cache?"
            )

    def _kept_boot(self) -> Path:
        """Where the box keeps a booted machine's state, for this shape of machine and this QEMU, which alone can read
        it.
        """
        spec, emulator = self._plan.spec, self._plan.emulator
        shape = (spec.memory_mib, spec.cpus, self._accelerator.qemu_args, self._built.kernel_args, DEVICES)
        digest = hashlib.sha256(repr((shape, emulator.about if emulator else "")).encode()).hexdigest()
        return self._built.directory / f"booted-{digest[:12]}.qcow2"

    def booted(self, hang_up: Callable[[], None]) -> None:
        """Keep the machine's state for later ones, if booting is slow: loading it takes some 3 s instead of 20."""
        kept = self._kept_boot()
        if self._accelerator.name != "tcg" or self.is_resumed or kept.exists():
            return
        hang_up()
        self.snapshot(BOOTED)
        self._monitor("stop")  # QEMU then writes what it holds of the file
        copy = self._dir / "booted.qcow2"  # beside the disk, so that `lab clean` finds it after a killed lab
        try:
            subprocess.run(["cp", "--sparse=always", str(self._disk), str(copy)], check=True, capture_output=True)
            copy.rename(kept)
        except (OSError, subprocess.CalledProcessError):
            pass  # no room: later machines boot
        finally:
            copy.unlink(missing_ok=True)
            self._monitor("cont")

    def _start(self, port: int) -> str:
        """Start on this port; return QEMU's output if it ended, else ""."""
        spec, emulator = self._plan.spec, self._plan.emulator
        command = [
            *(emulator.command if emulator else (PROGRAM,)), "-machine", "q35", *self._accelerator.qemu_args,
            "-name", f"cntr-lab-{self._dir.name}", "-m", str(spec.memory_mib), "-smp", str(spec.cpus),
            "-nodefaults", "-display", "none", "-serial", f"file:{self._dir / 'console.log'}",
            "-drive", f"file={self._disk},if=none,id=disk,cache=unsafe,discard=unmap",
            "-netdev", f"user,id=lab,hostfwd=tcp:127.0.0.1:{port}-:22", *(word for device in DEVICES for word in ("-device", device)),
            *(("-loadvm", BOOTED) if self.is_resumed else ()), "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
            "-kernel", str(self._built.kernel), "-initrd", str(self._built.initrd), "-append", self._built.kernel_args,
        ]  # fmt: skip
        if not self._plan.keep and shutil.which("setpriv"):
            # The machine ends with this lab, even after SIGKILL.
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        Path(self._qmp_path).unlink(missing_ok=True)
        with (self._dir / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self._dir / "qemu.pid").write_text(f"{self._process.pid}\n")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return (self._dir / "qemu.log").read_text(errors="replace").strip()[-400:] or "no word"
            if Path(self._qmp_path).exists():
                time.sleep(0.2)
                with contextlib.suppress(LabError):
                    if self.is_resumed:
                        self._monitor("")  # answers once the memory is loaded
                if self._process.poll() is None:
                    return ""
            time.sleep(0.05)
        return "" if self._process.poll() is None else "it ended"

    @property
    def _qmp_path(self) -> str:
        # sun_path holds 107 bytes: a deep cache directory would not fit, so the path goes through an open directory.
        path = str(self._dir / "qmp")
        if len(path) < 100:
            return path
        return f"/tmp/cntr-lab-{os.getuid()}-{self._dir.name}.qmp"

    def _monitor(self, command: str, seconds: float = 120) -> None:
        """Send one line to QEMU's human monitor, which prints nothing on success."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(seconds)
                link.connect(self._qmp_path)
                stream = link.makefile("rw", encoding="utf-8", newline="\n")
                stream.readline()  # the greeting
                for execute, arguments in (
                    ("qmp_capabilities", {}),
                    ("human-monitor-command", {"command-line": command}),
                ):
                    stream.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
                    stream.flush()
                    answer: dict[str, object] = {}
                    while "return" not in answer and "error" not in answer:
                        line = stream.readline()
                        if not line:
                            raise LostMachine(f"QEMU ended during {command!r}", self.console()[-600:])
                        answer = json.loads(line)
        except OSError as error:
            raise LostMachine(f"QEMU's monitor does not answer {command!r}: {error}") from error
        said = str(answer.get("return", "")).strip()
        if "error" in answer or said:
            raise LabError(f"QEMU refused {command!r}: {said or answer.get('error')}")

    def snapshot(self, name: str) -> None:
        """savevm: disk and memory, inside the overlay."""
        self._monitor(f"savevm {name}")

    def restore(self, name: str) -> None:
        """loadvm; the guest's clock is stale afterwards, and its connections are gone."""
        self._monitor(f"loadvm {name}")

    def leave(self) -> None:
        """Its process keeps running."""
        base.outlives(self._process)

    def destroy(self) -> None:
        """Kill QEMU, remove the run directory."""
        self._kill()
        with contextlib.suppress(OSError):
            os.unlink(self._qmp_path)
        base.remove_run_dir(self._dir)

    def _pid(self) -> int:
        try:
            pid = int((self._dir / "qemu.pid").read_text())
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if f"cntr-lab-{self._dir.name}".encode() in line else 0  # pids are reused

    def _kill(self) -> None:
        pid = self._pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(30)
        elif pid:
            _wait_gone(pid, 10)

    def alive(self) -> bool:
        """Whether QEMU runs."""
        if self._process is not None:
            return self._process.poll() is None
        return self._pid() != 0

    def console(self) -> str:
        """The serial console's log."""
        try:
            return (self._dir / "console.log").read_text(errors="replace")
        except OSError:
            return ""


def _wait_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pid and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return not pid
