"""The demo: your tools inside a container that consists of one static binary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from testkit.container import SlimContainer

TRANSCRIPT = (
    ("the container's root: no shell, no /etc", "ls -l /var/lib/cntr"),
    ("its processes, in its own pid namespace, seen with this machine's tools", "cat /proc/1/comm; ls -d /proc/[0-9]*"),
    ("its host name", "cat /proc/sys/kernel/hostname"),
    ("its network namespace: only lo", "cat /proc/net/dev | cut -d: -f1 | tail -n +3"),
    ("its environment, to be read", "cat /run/cntr/environ"),
    ("the tools are this machine's", "command -v python3 && . /etc/os-release && echo $PRETTY_NAME"),
)


def main() -> int:
    """Start the container and attach to it; return 0 if the session succeeded."""
    cntr = shutil.which("cntr", path=os.path.dirname(sys.executable)) or "cntr"
    begun = time.perf_counter()
    with SlimContainer("demo") as container:
        took = (time.perf_counter() - begun) * 1000
        print(f"A container with one static binary runs as pid {container.pid} (made in {took:.0f} ms):")
        print(
            f"  find ROOT -xdev -type f: {[str(p.relative_to(container.root)) for p in container.root.iterdir() if p.is_file()]}\n"
        )
        if os.isatty(0) and os.isatty(1):
            print(f"$ cntr attach {container.pid}        (its files are at /var/lib/cntr; leave with Ctrl-D)")
            return subprocess.run([cntr, "attach", str(container.pid)], check=False).returncode
        for what, command in TRANSCRIPT:
            print(f"# {what}\n$ cntr attach {container.pid} -- sh -c '{command}'", flush=True)
            done = subprocess.run([cntr, "attach", str(container.pid), "--", "sh", "-c", command], check=False)
            if done.returncode:
                return done.returncode
        print(
            "\nNothing is left behind: the container's mounts were never touched. Next: sudo ./bootstrap tests lint types"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
