"""Images made byte by byte: tar headers that no tar program writes, layers, layouts and archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}


def number(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % 256 ** (width - 1)).to_bytes(width - 1, "big")


def member(
    name: bytes,
    kind: bytes = b"0",
    data: bytes = b"",
    *,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_000_000_000,
    size: int | None = None,
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    tail: bytes = b"",
) -> bytes:
    """One header and its data. size: the header's claim, by default the real size; tail: bytes from offset 345 on."""
    claimed = len(data) if size is None else size
    head = name[:100].ljust(100, b"\0") + number(mode, 8) + number(uid, 8) + number(gid, 8)
    head += number(claimed, 12) + number(mtime, 12) + b" " * 8 + kind + link[:100].ljust(100, b"\0") + magic
    head += bytes(64) + number(device[0], 8) + number(device[1], 8) + tail
    head = head.ljust(512, b"\0")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    return head + data + bytes(-len(data) % 512)


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extension header with RECORDS."""
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        body += str(length).encode() + rest
    return member(b"pax", kind, body)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", kind, name + b"\0")


END = bytes(1024)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if how == "zstd":
        return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout
    return data


def files(
    layers: list[bytes], config: dict[str, object] | None = None, how: str = "gzip", **changes: object
) -> dict[str, bytes]:
    """The files of an OCI layout of one image. changes: false values in the manifest's layer rows and diff_ids."""
    blobs = [compressed(layer, how) for layer in layers]
    import os

    document = {
        **{"architecture": MACHINE.get(os.uname().machine, os.uname().machine), "os": "linux", "config": config or {}},
        "rootfs": {"type": "layers", "diff_ids": changes.get("diff_ids", [digest(layer) for layer in layers])},
    }
    configuration = json.dumps(document).encode()
    rows = [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(b), "size": len(b)} for b in blobs]
    for row in rows:
        row.update(changes.get("row", {}))
    manifest = json.dumps(
        {"schemaVersion": 2, "config": {"digest": digest(configuration), "size": len(configuration)}, "layers": rows}
    ).encode()
    index = json.dumps(
        {"schemaVersion": 2, "manifests": [{"digest": digest(manifest), "size": len(manifest)}]}
    ).encode()
    found = {"index.json": index, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    for blob in (configuration, manifest, *blobs):
        found["blobs/sha256/" + digest(blob)[7:]] = blob
    return found


def archive(path: pathlib.Path, content: dict[str, bytes]) -> str:
    """Write CONTENT as a tar file; return its reference."""
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"archive:{path}"


def layout(path: pathlib.Path, content: dict[str, bytes]) -> str:
    """Write CONTENT as a directory; return its reference."""
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return f"oci:{path}"


def tree(root: str) -> bytes:
    """A tar of a directory."""
    return subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True).stdout
