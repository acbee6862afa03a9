"""The same questions for other tools in the same machine: a table in the report, never a failure."""

import shlex
import time

import pytest

APP = "tr '\\0' ' ' </proc/1/cmdline"
CAPABILITIES = "grep CapEff /proc/self/status"
# question → (container, script in the session, what the answer must hold)
QUESTIONS = {
    "a shell in a container that has none": ("slim", "echo alive", "alive"),
    "gdb from outside the image": ("slim", "gdb --version | head -n 1", "GNU gdb"),
    "the container's files": (
        "box",
        "cat /etc/lab-marker /var/lib/cntr/etc/lab-marker 2>/dev/null; true",
        "only in the container",
    ),
    "the container's processes, by its own pids": ("box", APP, "/slim-app"),
    "the container's environment": ("box", "echo $GREETING", "hello world"),
    "the container's capabilities (none), at most CAP_SYS_PTRACE more": (
        "nonroot",
        f"case $({CAPABILITIES}) in *:?0000000000000000 | *:?0000000000080000) echo no more;; *) {CAPABILITIES};; esac",
        "no more",
    ),
    "a read-only root": ("readonly", "echo alive", "alive"),
    "exit status 7": ("box", "exit 7", ""),
    "tools in a paused container": ("box", "echo alive", "alive"),
}
ENGINE_EXEC = {
    "docker": "docker exec",
    "podman": "podman exec",
    "podman-rootless": "podman exec",
    "containerd": "ctr task exec --exec-id peer",
}
ENGINE_EXEC |= {"runc": "runc exec", "crun": "crun exec", "lxc": "lxc-attach -n", "incus": "incus exec"}
UPSTREAM_TYPES = {"docker": "docker", "podman": "podman", "containerd": "containerd", "lxc": "lxc", "nspawn": "nspawn"}


def tools(machine, container, pid, script):
    """Tool → (command line, user) that runs `script` in the container."""
    quoted = shlex.quote(script)
    engine = machine.spec.engine
    found = {"cntr (this one)": (f"cntr attach {container} -- sh -c {quoted}", "root")}
    found["nsenter --all"] = (f"nsenter --all --target {pid} sh -c {quoted}", "root")
    found["nsenter, own mounts"] = (f"nsenter --target {pid} --pid --net --ipc --uts sh -c {quoted}", "root")
    if engine in ENGINE_EXEC:
        user = "vagrant" if engine == "podman-rootless" else "root"
        found[ENGINE_EXEC[engine].split(" --")[0]] = (f"{ENGINE_EXEC[engine]} {container} sh -c {quoted}", user)
    if machine.run("test -x /usr/bin/cntr").returncode == 0:
        kind = UPSTREAM_TYPES.get(engine, "process-id")
        name = container if kind != "process-id" else pid
        found["Debian's cntr"] = (f"/usr/bin/cntr attach --type {kind} {name} -- sh -c {quoted}", "root")
    return found


@pytest.mark.not_gate
@pytest.mark.once_a_box  # takes minutes, mostly the other tools' timeouts
def test_peers(machine, engine, traces, request):
    """Give nsenter, the engine's exec and Debian's cntr the same tasks as cntr."""
    rows = []
    for question, (container, script, wanted) in QUESTIONS.items():
        if container not in machine.spec.containers:
            continue
        paused = "paused" in question
        pid = str(engine.pid(container))
        for tool, (line, user) in tools(machine, container, pid, script).items():
            before = traces.read(container)
            if paused:
                engine.pause(container)
            began = time.monotonic()
            result = machine.run(f"timeout -k 1 {4 * machine.slowness:.0f} {line}", user=user, timeout=25)
            seconds = time.monotonic() - began
            if paused:
                engine.unpause(container)
            fine = wanted in result.stdout and result.returncode == (7 if "status 7" in question else 0)
            said = (result.stderr or result.stdout).strip()[-200:]
            after = traces.read(container)
            left = [q for q in before if [line for line in after[q] if line not in before[q]]]
            if left:
                said = f"left behind: {', '.join(left)}. {said}"
            answer = "traces" if fine and left else "works" if fine else "fails"
            rows.append(
                {
                    "machine": machine.spec.name,
                    "question": question,
                    "tool": tool,
                    "answer": answer,
                    "said": said,
                    "seconds": f"{seconds:.1f}",
                }
            )
    request.node.user_properties.append(("peers", rows))
