"""A client for a container runtime's CRI socket, with the few calls that a pod needs.

    cri.py image DIRECTORY NAME FILE         a docker archive of one layer, for `ctr image import`
    cri.py run NAME IMAGE COMMAND SCRATCH    a pod of one container; prints the ids of pod and container. Options by environment:
                                             VOLUME READONLY RUNAS, as in the scripts beside it
    cri.py toolbox NAME IMAGE PROGRAM        the pod of `kubectl debug node/N --profile=sysadmin`; NAME says what it lacks of that
    cri.py stop CONTAINER
    cri.py remove POD

Field numbers: k8s.io/cri-api/pkg/apis/runtime/v1/api.proto. A message is {field number: str | int | message | list of
them}.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from typing import Any

SOCKET = "unix:///run/containerd/containerd.sock"
Message = dict[int, Any]
OF_THE_CONTAINER, OF_THE_NODE = 1, 2  # NamespaceMode; 0 is the pod's


def encode(message: Message) -> bytes:
    """A message as protobuf: varint and length-delimited fields."""
    out = bytearray()
    for number, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                out += varint(number << 3) + varint(item)
            else:
                data = item.encode() if isinstance(item, str) else encode(item)
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


def varint(value: int) -> bytes:
    """Seven bits per byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def first_string(data: bytes) -> str:
    """Field 1 of an answer if it is a string (the id of a new object), else ""."""
    if data[:1] != b"\x0a":
        return ""
    length, shift, position = 0, 0, 1
    while data[position] & 0x80:
        length |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    length |= data[position] << shift
    return data[position + 1 : position + 1 + length].decode()


def call(method: str, message: Message) -> str:
    """Make a call; return the answer's first field if it is a string."""
    import grpc

    ask = grpc.insecure_channel(SOCKET).unary_unary(
        f"/runtime.v1.RuntimeService/{method}", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        answer: bytes = ask(encode(message), timeout=240, wait_for_ready=True)
    except grpc.RpcError as error:
        sys.exit(f"{method}: {error.details()}")
    return first_string(answer)


def image(directory: str, name: str, path: str) -> None:
    """Write an archive as by `docker save`, of an image with this one layer.

    Its command is for the pod's sandbox. It must not listen: the port is the container's, in the same network.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(directory, ".")
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for file, data in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(file)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def run(name: str, image_name: str, command: str, scratch: str) -> None:
    """RunPodSandbox, CreateContainer, StartContainer."""
    namespaces: Message = {2: OF_THE_CONTAINER}
    pod: Message = {1: {1: name, 2: f"uid-{name}", 3: "lab"}, 8: {1: "/lab-pods", 2: {1: namespaces}}}
    if name == "box":
        pod[2] = "boxhost"
    sandbox = call("RunPodSandbox", {1: pod})
    security: Message = {3: namespaces}
    if os.environ.get("RUNAS"):
        uid = int(os.environ["RUNAS"])
        security |= {1: {2: ["ALL"]}, 5: {1: uid}, 8: [2000], 11: 1, 12: {1: uid}}
    if os.environ.get("READONLY"):
        security[7] = 1
    container: Message = {
        1: {1: "app"},
        2: {1: image_name},
        3: ["/bin/sh", "-c", command] if command else ["/slim-app"],
        6: [{1: "LAB_NAME", 2: name}, {1: "GREETING", 2: "hello world"}],
        15: {2: security},
    }
    if command:
        container[7] = [{1: "/data", 2: os.environ["VOLUME"]}, {1: "/scratch", 2: scratch}]
    start(sandbox, container, pod)


def toolbox(name: str, image_name: str, program: str) -> None:
    """A pod with the node's network, ipc and pids, and the node's root at /host; the tools are the node's own /usr and
    /opt.
    """
    namespaces: Message = {1: OF_THE_NODE, 2: OF_THE_NODE, 3: OF_THE_NODE}
    if "own-pid" in name:
        namespaces[2] = OF_THE_CONTAINER
    rights: Message = {} if "unprivileged" in name else everything()
    pod_rights: Message = {1: namespaces, 6: rights.get(2, 0)}
    pod: Message = {1: {1: name, 2: f"uid-{name}", 3: "lab"}, 8: {1: "/lab-pods", 2: pod_rights}}
    sandbox = call("RunPodSandbox", {1: pod})
    container: Message = {
        1: {1: "debugger"},
        2: {1: image_name},
        3: [program],
        7: [{1: "/usr", 2: "/usr", 3: 1}, {1: "/opt", 2: "/opt", 3: 1}, {1: "/host", 2: "/"}],
        8: [{1: "/dev/fuse", 2: "/dev/fuse", 3: "rw"}] if rights else [],
        15: {2: {**rights, 3: namespaces}},
    }
    start(sandbox, container, pod)


def everything() -> Message:
    """A privileged security context. If root here lacks capabilities, only those it has: containerd cannot give more."""
    with open("/proc/self/status") as status:
        held = next(line.split()[1] for line in status if line.startswith("CapPrm"))
    with open("/proc/sys/kernel/cap_last_cap") as last:
        if int(held, 16) == (1 << int(last.read()) + 1) - 1:
            return {2: 1}
    names = subprocess.run(["capsh", f"--decode={held}"], capture_output=True, text=True, check=True).stdout
    return {1: {1: [name.removeprefix("cap_").upper() for name in names.strip().partition("=")[2].split(",")]}}


def start(sandbox: str, container: Message, pod: Message) -> None:
    """CreateContainer, StartContainer; prints both ids."""
    made = call("CreateContainer", {1: sandbox, 2: container, 3: pod})
    call("StartContainer", {1: made})
    print(sandbox, made)


def stop(container: str) -> None:
    """StopContainer, with 20 s between the signals."""
    call("StopContainer", {1: container, 2: 20})


def remove(pod: str) -> None:
    """Remove a pod with its containers."""
    call("StopPodSandbox", {1: pod})
    call("RemovePodSandbox", {1: pod})


if __name__ == "__main__":
    verbs: dict[str, Callable[..., None]] = {
        "image": image,
        "run": run,
        "toolbox": toolbox,
        "stop": stop,
        "remove": remove,
    }
    verbs[sys.argv[1]](*sys.argv[2:])
