"""A CRI client with the few calls that tests need, over gRPC; the lab's client encodes the messages.

Field numbers: k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

import subprocess
import sys

from lab.provision.cri import Message, encode, first_string
from testkit.engines.workspaces import Failed

SERVICE = "/runtime.v1.RuntimeService/"
POD, CONTAINER, NODE = 0, 1, 2  # NamespaceMode


class Runtime:
    """The runtime service on a socket. Each call is a process of its own, because gRPC's threads do not survive a fork."""

    def __init__(self, socket: str, python: str) -> None:
        """python: an interpreter with grpcio."""
        self.socket, self.python = socket, python

    def call(self, method: str, message: Message) -> str:
        """Make a call; return the answer's first field if it is a string. Raises Failed with the runtime's message."""
        command = [self.python, "-c", CLIENT, f"unix://{self.socket}", SERVICE + method]
        done = subprocess.run(command, input=encode(message), capture_output=True, timeout=90)
        if done.returncode:
            raise Failed(f"{method}: {done.stderr.decode().strip().splitlines()[-1]}")
        return first_string(done.stdout)


CLIENT = """
import sys, grpc
call = grpc.insecure_channel(sys.argv[1]).unary_unary(sys.argv[2], request_serializer=bytes, response_deserializer=bytes)
try:
    sys.stdout.buffer.write(call(sys.stdin.buffer.read(), timeout=60, wait_for_ready=True))
except grpc.RpcError as error:
    sys.exit(error.details())
"""


def interpreter() -> str:
    """An interpreter with grpcio: this one, or the system's; "" if neither has it."""
    for python in (sys.executable, "/usr/bin/python3"):
        if not subprocess.call([python, "-c", "import grpc"], stderr=subprocess.DEVNULL):
            return python
    return ""


def sandbox(name: str, namespace: str, uid: str, *, cgroup: str, pid: int) -> Message:
    """PodSandboxConfig of a pod in the host's network namespace, which needs no CNI plugin."""
    linux = {1: cgroup, 2: {1: {1: NODE, 2: pid, 3: POD}}}
    return {1: {1: name, 2: uid, 3: namespace, 4: 0}, 8: linux}


def container(
    name: str, image: str, command: list[str], *, pid: int, user: int = 0, read_only: bool = False
) -> Message:
    """ContainerConfig."""
    security: Message = {3: {1: NODE, 2: pid, 3: POD}}
    if user:
        security |= {1: {2: ["ALL"]}, 5: {1: user}, 11: 1}  # capabilities.drop, run_as_user, no_new_privs
    if read_only:
        security[7] = 1
    return {1: {1: name, 2: 0}, 2: {1: image}, 3: command, 15: {2: security}}
