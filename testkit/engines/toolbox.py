"""An image with python3, busybox and this machine's /usr read-only, for toolbox containers of the Docker rig."""

from __future__ import annotations

import os
import subprocess

from cntr.attach.target import capability_names
from cntr.linux import syscalls
from testkit.engines.rigs_cli import Docker

# What --privileged means if this machine's root lacks a capability.
LESS = ["--device", "/dev/fuse"]
LESS += [
    word for name in capability_names(syscalls.permitted_capabilities() & (1 << 38) - 1) for word in ("--cap-add", name)
]
LESS += [word for what in ("seccomp", "apparmor", "systempaths") for word in ("--security-opt", f"{what}=unconfined")]
PRIVILEGED = ["--privileged"] if syscalls.permitted_capabilities() >> 24 & 1 else LESS
USR = ["-v", "/usr:/usr:ro", "-v", "/etc/ld.so.cache:/etc/ld.so.cache:ro"]


def image(docker: Docker) -> None:
    """Build toolbox:1, the busybox image with /lib, /lib64 and /bin of this machine."""
    root = f"{docker.workspace.path}/image-slim"
    subprocess.run(["cp", "-a", root, f"{root}-toolbox"], check=True)
    for name in ("lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(f"usr/{name}", f"{root}-toolbox/{name}")
    os.makedirs(f"{root}-toolbox/usr", exist_ok=True)
    with open(f"{root}-toolbox/etc/toolbox", "w") as file:
        file.write("here\n")
    subprocess.run(["tar", "-C", f"{root}-toolbox", "-cf", f"{root}-toolbox.tar", "."], check=True)
    docker.command("import", f"{root}-toolbox.tar", "toolbox:1")
