"""Which accelerator boots the lab's kernel here, found out by booting it.

/dev/kvm may open and create machines but not run a stock kernel, and what libvirt advertises proves nothing either.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from . import paths
from .boxbuild import BuiltBox
from .errors import LabError

# QEMU 7.2 crashes guests through cmpxchg16b. An old model also makes an emulated machine faster: newer ones have wide
# registers, saved at each switch, string copies by the byte (ERMS), and two instructions of SMAP for each copy to and
# from programs.
EMULATED_CPU = "Nehalem,cx16=off"
TOKEN = b"cntr-lab: kernel alive"
PROBE_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """How machines run, and why."""

    name: str  # "kvm" or "tcg"
    why: str

    @property
    def slowness(self) -> float:
        """The factor for time limits."""
        return 1.0 if self.name == "kvm" else 6.0

    @property
    def qemu_args(self) -> list[str]:
        """QEMU's options."""
        if self.name == "kvm":
            return ["-accel", "kvm", "-cpu", "host"]
        return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", EMULATED_CPU]


def choose(built: BuiltBox, told: str = "auto") -> Accelerator:
    """The accelerator to use: as requested, or the first that boots. The answer is kept until this machine reboots.

    Raises LabError if KVM was requested and does not boot the kernel.
    """
    if told == "tcg":
        return Accelerator("tcg", "asked for")
    note = paths.cache_dir() / "accelerator.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{built.directory.name} {os.access('/dev/kvm', os.R_OK | os.W_OK)}"
    try:
        kept = json.loads(note.read_text())
        answers = kept["answers"] if kept["boot"] == boot else {}
        answer = Accelerator(*answers[key]) if key in answers else None
    except (OSError, ValueError, KeyError, TypeError):
        answers, answer = {}, None
    if answer is None:
        answer = probe(built)
        answers[key] = (answer.name, answer.why)
        note.write_text(json.dumps({"boot": boot, "answers": answers}, indent=1) + "\n")
    if told == "kvm" and answer.name != "kvm":
        raise LabError(
            f"KVM was asked for, but {answer.why}", "leave --accel out: TCG works everywhere, six times slower"
        )
    return answer


def probe(built: BuiltBox, seconds: float = PROBE_SECONDS) -> Accelerator:
    """Boot the box's own kernel and initrd under KVM until the initrd writes to the serial line."""
    if not Path("/dev/kvm").exists():
        return Accelerator("tcg", "there is no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "this user may not open /dev/kvm (group kvm)")
    print("lab: trying whether KVM boots the lab's kernel", flush=True)
    with tempfile.TemporaryDirectory(prefix="cntr-lab-") as work:
        console = Path(work, "console")
        command = [
            "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "512", "-display", "none", "-no-reboot", "-nodefaults",
            "-serial", f"file:{console}", "-kernel", str(built.kernel), "-initrd", str(built.initrd),
            "-append", "console=ttyS0 lab.probe",
        ]  # fmt: skip
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while time.monotonic() - started < seconds:
                ended = process.poll() is not None
                if console.exists() and TOKEN in console.read_bytes():
                    return Accelerator("kvm", f"it booted the kernel in {time.monotonic() - started:.1f} s")
                if ended:
                    said = process.stderr.read().decode(errors="replace") if process.stderr else ""
                    # The first line is the reason; the next ones are places in QEMU's source.
                    said = said.strip().partition("\n")[0].removeprefix("qemu-system-x86_64: ")[:200]
                    return Accelerator(
                        "tcg", f"QEMU with KVM ended before the kernel printed anything ({said or process.returncode})"
                    )
                time.sleep(0.1)
        finally:
            process.kill()
            process.communicate()
    return Accelerator("tcg", f"/dev/kvm opens, but the kernel did not reach its initrd within {seconds:.0f} s")
