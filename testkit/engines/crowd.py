"""Hundreds of containers: real processes, with the state files that three engines would have for them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from cntr.linux import procfs
from testkit.elf import static_program

MANY = 500
# One process starts them all; its arguments contain their ids, like those of a monitor.
PARENT = """
import os, sys, time
for id in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        os.execvp(sys.argv[1], [sys.argv[1]])
    print(pid, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def processes(directory: pathlib.Path) -> Iterator[dict[str, int]]:
    """{id: pid} of 500 processes, whose program is written to DIRECTORY."""
    program = directory / "app"
    program.write_bytes(static_program())
    program.chmod(0o755)
    ids = [os.urandom(32).hex() for _ in range(MANY)]
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for first in range(0, MANY, 50):  # longer command lines are not read completely
            command = [sys.executable, "-c", PARENT, str(program), *ids[first : first + 50]]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True)
            stack.enter_context(process)
            stack.callback(os.killpg, process.pid, 9)
            assert process.stdout
            found |= {id: int(process.stdout.readline()) for id in ids[first : first + 50]}
        yield found


def config(id: str) -> dict[str, object]:
    """An OCI configuration of the size that Docker and Podman write."""
    mounts = [
        {"destination": f"/m{n}", "type": "bind", "source": f"/var/lib/x/{id}/{n}", "options": ["rbind"]}
        for n in range(20)
    ]
    names = [f"SCMP_{n}" for n in range(400)]
    return {"mounts": mounts, "seccomp": names, "rootfs": f"/var/lib/x/{id}", "annotations": {"k": "v"}}


def runc_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    for id, pid in crowd.items():
        (root / "runc" / id).mkdir(parents=True)
        start = procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
        record = {"init_process_pid": pid, "init_process_start": start, "config": config(id)}
        (root / "runc" / id / "state.json").write_text(json.dumps(record))
    return {"CNTR_RUNC_ROOT": f"{root}/runc"}


def podman_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    rows = []
    for number, (id, pid) in enumerate(crowd.items()):
        userdata = root / "run/overlay-containers" / id / "userdata"
        userdata.mkdir(parents=True)
        (userdata / "pidfile").write_text(str(pid))
        rows.append({"id": id, "names": [f"web{number}"], "layer": id, "metadata": json.dumps({"image-name": "x:1"})})
    (root / "graph/overlay-containers").mkdir(parents=True)
    (root / "graph/overlay-containers/containers.json").write_text(json.dumps(rows))
    (root / "conf").write_text(f'[storage]\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n')
    return {"CONTAINERS_STORAGE_CONF": f"{root}/conf"}


def k8s_layout(root: pathlib.Path, crowd: dict[str, int]) -> dict[str, str]:
    for number, (id, pid) in enumerate(crowd.items()):
        task = root / "state/io.containerd.runtime.v2.task/k8s.io" / id
        task.mkdir(parents=True)
        (task / "init.pid").write_text(str(pid))
        names = {"container-type": "container", "sandbox-name": f"web-{number}", "sandbox-namespace": "prod"}
        annotations = {f"io.kubernetes.cri.{key}": value for key, value in (names | {"container-name": "app"}).items()}
        (task / "config.json").write_text(json.dumps(config(id) | {"annotations": annotations}))
    return {"CNTR_CONTAINERD_ROOT": f"{root}/state"}


LAYOUTS = (runc_layout, podman_layout, k8s_layout)
