"""``kubectl cntr POD``: a session in a container of a pod on any node, using kubectl(1) only.

kubectl finds the pod's node and starts a toolbox pod there, privileged and in the node's pid namespace. cntr's one file
is copied into it and attaches from there; then the pod is removed. It ends by itself after PATIENCE_SECONDS in case
nobody removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import Any

from cntr.audit import session
from cntr.cli import options_attach, parser
from cntr.cli.options_attach import ENV
from cntr.cli.parser import Option, Subcommand
from cntr.errors import CntrError, UsageError, printable
from cntr.remote import onefile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "docker.io/library/python:3-slim"
PATIENCE_SECONDS = 12 * 3600
START_SECONDS = 180.0
WAITING = ("ContainerCreating", "PodInitializing", "")
COMMAND = Subcommand(
    "kubectl",
    "POD",
    "a shell with a toolbox's tools beside a container of a pod, on whichever node it runs",
    (
        Option("-n --namespace", "NAME", "the pod's namespace (default: the context's)"),
        Option("-c --container", "NAME", "the container (default: the pod's default one, else its first)"),
        Option("--context", "NAME", "kubectl's context"),
        Option("--kubeconfig", "FILE", "kubectl's configuration"),
        Option(
            "--image", "REF", f"the toolbox's image, which has a python3 (default: $CNTR_TOOLBOX_IMAGE, else {IMAGE})"
        ),
        options_attach.USER,
        ENV,
        options_attach.PRIVILEGED,
    ),
    "kubectl cntr busybox-88d82d92\n"
    "kubectl cntr -n prod web-0 -c app -- strace -fp 1\n"
    "kubectl cntr web-0 --image registry.example/toolbox:1 -- gdb -p 1",
    takes_command=True,
)


def run(argv: list[str]) -> int:
    """Run the plugin; return the exit status. Raises CntrError, UsageError."""
    parsed = parser.parse(["kubectl", *argv], (COMMAND,), options_attach.COMMON)
    if parsed.flag("help"):
        from cntr.cli import manual, width

        text = manual.usage(COMMAND).replace("cntr kubectl", "kubectl cntr")
        os.write(1, width.fitted(text, width.of_terminal()).encode() + b"\n")
        return 0
    session.check_whole("--host")
    pod = parsed.words[0].removeprefix("pod/").removeprefix("pods/")
    if not pod or pod.startswith("-") or not all(letter.isalnum() or letter in ".-" for letter in pod):
        raise UsageError(f"{printable(pod)}: not a pod's name", "kubectl get pods")
    where = [f"--{key}={parsed.text(key)}" for key in ("namespace", "context", "kubeconfig") if parsed.flag(key)]
    cluster = Cluster(where)
    with _understood(pod):
        target, node = _target(cluster.get(pod), parsed.text("container"))
    words = ["attach", target]
    words += ["--user", parsed.text("user")] if parsed.flag("user") else []
    words += [word for setting in parsed.texts("env") for word in ("--env", setting)]
    words += ["--privileged"] if parsed.flag("privileged") else []
    words += ["--", *parsed.argv] if parsed.argv else []
    image = parsed.text("image") or os.environ.get("CNTR_TOOLBOX_IMAGE") or IMAGE
    return cluster.attach(node, image, words)


@contextlib.contextmanager
def _understood(what: str) -> Iterator[None]:
    """A scope for taking an answer apart, whatever it contains. Raises CntrError if it does not describe a pod."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        raise CntrError(
            f"kubectl get pod {what}: not a pod as Kubernetes describes it",
            f"`kubectl get pod {what} -o yaml` shows it",
        ) from None


def _target(pod: dict[str, Any], wanted: str) -> tuple[str, str]:
    """(cntr's name of the container, the node). Raises CntrError."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    name, node = f"{meta['namespace']}/{meta['name']}", spec.get("nodeName", "")
    containers = [
        one["name"] for kind in ("containers", "initContainers", "ephemeralContainers") for one in spec.get(kind, [])
    ]
    usual = meta.get("annotations", {}).get("kubectl.kubernetes.io/default-container", "")
    container = wanted or (usual if usual in containers else containers[0])
    if container not in containers:
        raise CntrError(
            f"{printable(name)} has no container {printable(container)}", f"it has {printable(', '.join(containers))}"
        )
    if not node:
        raise CntrError(
            f"{printable(name)}: it is on no node yet: {printable(status.get('phase', ''))}",
            "kubectl describe pod says why",
        )
    return f"k8s:{name}/{container}", node


class Cluster:
    """kubectl with the options that select a cluster."""

    def __init__(self, where: list[str]) -> None:
        """where: kubectl's options for cluster and namespace."""
        self.where = where

    def call(self, *words: str, input: bytes | None = None) -> bytes:
        """Run kubectl and return its stdout. Raises CntrError with its stderr."""
        try:
            done = subprocess.run(["kubectl", *self.where, *words], input=input, capture_output=True, check=False)
        except FileNotFoundError:
            raise CntrError("kubectl is not on this machine", "Debian has it in kubernetes-client") from None
        if done.returncode:
            lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
            raise CntrError(
                f"kubectl {words[0]}: {printable((lines or ['it failed'])[-1])}",
                "may you do that? `kubectl auth can-i --list`",
            )
        return done.stdout

    def get(self, pod: str) -> dict[str, Any]:
        """A pod. Raises CntrError."""
        found: dict[str, Any] = json.loads(self.call("get", "pod", pod, "-o", "json"))  # see _understood
        return found

    def attach(self, node: str, image: str, words: list[str]) -> int:
        """Run cntr WORDS in a new toolbox on NODE; return the exit status. Raises CntrError."""
        toolbox = f"cntr-{os.urandom(5).hex()}"
        before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            self.call(
                "create", "--validate=false", "-f", "-", input=json.dumps(_manifest(toolbox, node, image)).encode()
            )
            with _understood(toolbox):
                self._wait(toolbox)
            file = f"/tmp/{toolbox}.pyz"
            self.call(
                "exec", "-i", toolbox, "--", "sh", "-c", f"cat > {file} && chmod 700 {file}", input=onefile.build()
            )
            streams = ["-i", *(["-t"] if os.isatty(0) and os.isatty(1) else [])]
            command = ["kubectl", *self.where, "exec", *streams, toolbox, "--", file, "--far", f"{file}.mark", *words]
            return subprocess.call(command)
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            self.call("delete", "pod", toolbox, "--now", "--wait=false", "--ignore-not-found")
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, toolbox: str) -> None:
        """Wait until the toolbox runs. Raises CntrError."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            status = self.get(toolbox).get("status", {})
            if status.get("phase") == "Running":
                return
            states = [one.get("state", {}).get("waiting", {}) for one in status.get("containerStatuses", [])]
            wrong = next((state for state in states if state.get("reason", "") not in WAITING), None)
            late = time.monotonic() > deadline
            if wrong or late or status.get("phase") in ("Failed", "Succeeded"):
                said = (
                    f"{wrong['reason']}: {wrong.get('message', '')}"
                    if wrong
                    else f"{status.get('phase', 'Pending')}{', still' if late else ''}"
                )
                raise CntrError(
                    f"the toolbox pod does not run: {printable(said)[:300]}",
                    "--image names another image that has a python3",
                )
            time.sleep(0.3)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _manifest(name: str, node: str, image: str) -> dict[str, Any]:
    """The toolbox: as `kubectl debug node/N --profile=sysadmin` makes it, with a time limit."""
    container = {
        "name": "toolbox",
        "image": image,
        "command": ["sleep", str(PATIENCE_SECONDS)],
        "securityContext": {"privileged": True},
    }
    spec = {
        "nodeName": node,
        "hostPID": True,
        "hostNetwork": True,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": PATIENCE_SECONDS,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    meta = {"name": name, "labels": {"app.kubernetes.io/managed-by": "cntr"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
