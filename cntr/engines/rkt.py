"""rkt pods (last released in 2018): the app is what a user means, not stage1's init.

``/var/lib/rkt/pods/run/UUID/pid`` (or ``ppid``, its parent) is stage1's first process. Each app runs below it, chrooted
at ``/opt/stage2/APP/rootfs`` (rkt's Documentation/devel/pod-lifecycle.md).
"""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, store
from cntr.engines.container import Container


def find(name: str, deadline: float) -> list[Container]:
    """The app UUID/APP, or the only app of the pod UUID (or prefix), or the app with this name."""
    uuid, _, app = name.partition("/")
    found = []
    for container in containers(deadline):
        pod, _, called = container.name.partition("/")
        if (len(uuid) >= 4 and pod.startswith(uuid) and app in ("", called)) or name == called:
            found.append(container)
    return found


def containers(deadline: float) -> list[Container]:
    """The apps of all running pods."""
    found = []
    for root in store.roots("rkt", "/var/lib/rkt"):
        for uuid in store.listdir(f"{root}/pods/run"):
            leader = _leader(f"{root}/pods/run/{uuid}")
            for app, pid in _apps(leader).items():
                start = pids.start_time(pid)
                if start:
                    found.append(Container("rkt", f"{uuid}/{app}", pid, id=uuid, start_time=start))
    return found


def _leader(pod: str) -> int:
    for file in ("pid", "ppid"):
        try:
            pid = int(store.read(f"{pod}/{file}", limit=32))
        except (OSError, ValueError):
            continue
        if file == "ppid":
            pid = next(iter(evidence.children(pid)), 0)
        if pids.start_time(pid):
            return pid
    return 0


def _apps(leader: int) -> dict[str, int]:
    """{app: pid}, the first process of each app below LEADER."""
    found: dict[str, int] = {}
    queue = [leader] if leader else []
    while queue:
        pid = queue.pop(0)
        try:
            _, stage2, rest = os.readlink(f"/proc/{pid}/root").partition("/opt/stage2/")
        except OSError:
            continue
        if stage2 and rest.endswith("/rootfs"):
            found.setdefault(rest.removesuffix("/rootfs"), pid)
        queue += evidence.children(pid)
    return found
