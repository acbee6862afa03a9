"""Reading and unpacking images: the result is what the layers say."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import struct
import tarfile
import tempfile
import time

import pytest

from cntr import images
from cntr.images import ImageError, Limits
from tests.images import build
from tests.images.build import END, long_name, member, pax

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and file capabilities need root")
COMPRESSIONS = (
    "none",
    "gzip",
    pytest.param("zstd", marks=pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd")),
)


def unpack(reference: str, root: pathlib.Path, **options: object):
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with images.find(reference) as image:
            return image.unpack(fd, **options)
    finally:
        os.close(fd)


def unpacked(tmp_path: pathlib.Path, *layers: bytes, **options: object) -> pathlib.Path:
    reference = build.archive(tmp_path / "image.tar", build.files([layer + END for layer in layers]))
    unpack(reference, tmp_path / "root", **options)
    return tmp_path / "root"


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["archive", "oci"])
def test_layers_in_every_compression_from_file_and_directory(tmp_path, how, kind):
    layer = member(b"etc/", b"5", mode=0o755) + member(b"etc/motto", b"0", b"slim\n") + END
    content = build.files([layer], {"Cmd": ["/app"]}, how)
    reference = (
        build.archive(tmp_path / "i.tar", content) if kind == "archive" else build.layout(tmp_path / "i", content)
    )
    with images.find(reference) as image:
        assert image.config["Cmd"] == ["/app"]
        assert image.layers[0].diff_id == build.digest(layer)
    unpack(reference, tmp_path / "root")
    assert (tmp_path / "root/etc/motto").read_text() == "slim\n"


def test_an_archive_of_docker_before_25_and_compressed_as_a_whole(tmp_path):
    layer = member(b"app", b"0", b"x", mode=0o755) + END
    config = json.dumps({"config": {}, "rootfs": {"diff_ids": [build.digest(layer)] * 2}}).encode()
    manifest = json.dumps(
        [{"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]
    ).encode()
    tar = tmp_path / "save.tar"
    build.archive(tar, {"c.json": config, "manifest.json": manifest, "1/layer.tar": layer})
    with tarfile.open(tar, "a") as stream:
        link = tarfile.TarInfo("2/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../1/layer.tar"
        stream.addfile(link)
    squeezed = tmp_path / "save.tar.gz"
    squeezed.write_bytes(build.compressed(tar.read_bytes(), "gzip"))
    unpack(f"archive:{squeezed}", tmp_path / "root")
    assert (tmp_path / "root/app").stat().st_mode & 0o777 == 0o755


@needs_root
def test_everything_that_a_tar_can_say(tmp_path):
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # VFS_CAP_REVISION_2, effective: net_bind_service
    deep = b"/".join([b"d" * 60] * 5)
    layer = (
        member(b"./", b"5", mode=0o755, mtime=86400)
        + member(b"bin/", b"5", mode=0o1777, uid=3, gid=4, mtime=86401)
        + member(b"bin/su", b"0", b"su", mode=0o6755, uid=7, gid=4_000_000)
        + member(b"bin/su2", b"1", link=b"bin/su")
        + pax({b"SCHILY.xattr.security.capability": capability, b"SCHILY.xattr.user.\xff": b"\0\1"})
        + member(b"bin/ping", b"0", b"ping", mode=0o755)
        + member(b"bin/\xff\xfe\n", b"0", b"name")
        + long_name(deep + b"/f")
        + member(b"x", b"0", b"long")
        + member(b"link", b"2", link=b"../../etc/shadow", uid=9)
        + member(b"pipe", b"6", mode=0o620)
        + member(b"tty", b"3", device=(5, 0), mode=0o666)
        + pax({b"mtime": b"1234567890.987654321"})
        + member(b"times", b"0")
    )
    root = unpacked(tmp_path, layer, devices=True)
    su = (root / "bin/su").stat()
    assert (stat.S_IMODE(su.st_mode), su.st_uid, su.st_gid, su.st_nlink) == (0o6755, 7, 4_000_000, 2)
    assert os.path.samefile(root / "bin/su", root / "bin/su2")
    directory = (root / "bin").stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_uid, directory.st_mtime) == (0o1777, 3, 86401)
    assert root.stat().st_mtime == 86400
    assert os.getxattr(root / "bin/ping", "security.capability") == capability
    assert os.getxattr(root / "bin/ping", b"user.\xff") == b"\0\1"
    assert pathlib.Path(os.fsdecode(bytes(root) + b"/bin/\xff\xfe\n")).read_text() == "name"
    assert pathlib.Path(os.fsdecode(bytes(root) + b"/" + deep + b"/f")).read_text() == "long"
    assert os.readlink(root / "link") == "../../etc/shadow"
    assert (root / "link").lstat().st_uid == 9
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "tty").stat().st_rdev == os.makedev(5, 0)
    assert (root / "times").stat().st_mtime_ns == 1234567890_987654321


@needs_root
def test_devices_are_left_out_and_counted(tmp_path):
    reference = build.archive(tmp_path / "i.tar", build.files([member(b"sda", b"4", device=(8, 0)) + END]))
    assert unpack(reference, tmp_path / "root").devices == 1
    assert os.listdir(tmp_path / "root") == []


def test_whiteouts_and_opaque_directories(tmp_path):
    lower = b"".join(member(b"%s/%s" % (d, f), b"0", b"low") for d in (b"a", b"b", b"c/d") for f in (b"1", b"2"))
    upper = (
        member(b"a/.wh.1")
        + member(b"b/3", b"0", b"up")
        + member(b"b/.wh..wh..opq")  # not first, so this layer's own entries stay
        + member(b"b/4", b"0", b"up")
        + member(b".wh.c")
        + member(b".wh.never-was")
        + member(b".wh..wh.plnk")
        + member(b"gone/.wh.x")
    )
    root = unpacked(tmp_path, lower, upper)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert found == ["a", "a/2", "b", "b/3", "b/4"]


def test_a_directory_and_a_file_replace_each_other_across_layers(tmp_path):
    lower = member(b"dir/file", b"0", b"low") + member(b"bin", b"2", link=b"usr/bin") + member(b"usr/bin/x", b"0", b"x")
    upper = member(b"dir", b"0", b"now a file") + member(b"bin/y", b"0", b"y")
    root = unpacked(tmp_path, lower, upper)
    assert (root / "dir").read_text() == "now a file"
    assert not (root / "bin").is_symlink(), "as with an overlay, the upper layer's directory covers the link"
    assert os.listdir(root / "bin") == ["y"]


def test_a_file_of_an_upper_layer_does_not_change_its_hard_links_below(tmp_path):
    lower = member(b"one", b"0", b"low") + member(b"two", b"1", link=b"one")
    root = unpacked(tmp_path, lower, member(b"one", b"0", b"up"))
    assert ((root / "one").read_text(), (root / "two").read_text()) == ("up", "low")


@pytest.mark.parametrize("format", ["gnu", "0.0", "0.1", "1.0", "zeros"])
def test_sparse_files_stay_sparse(tmp_path, format):
    size, offset = 64 << 20, 32 << 20
    text = b"data".ljust(512, b"\0")
    if format == "gnu":
        field = b"\0" * 41 + build.number(offset, 12) + build.number(512, 12) + build.number(size, 12) + bytes(12)
        field = field.ljust(41 + 96 + 1, b"\0") + build.number(size, 12)
        layer = member(b"f", b"S", text, magic=b"ustar  \0", tail=field)
    elif format == "1.0":
        table = f"1\n{offset}\n512\n".encode().ljust(512, b"\0")
        names = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"f"}
        layer = pax(names | {b"GNU.sparse.realsize": b"%d" % size}) + member(b"g", b"0", table + text)
    elif format == "0.0":
        layer = pax(
            {b"GNU.sparse.size": b"%d" % size, b"GNU.sparse.offset": b"%d" % offset, b"GNU.sparse.numbytes": b"512"}
        )
        layer += member(b"f", b"0", text)
    elif format == "0.1":
        layer = pax({b"GNU.sparse.size": b"%d" % size, b"GNU.sparse.map": b"%d,512" % offset}) + member(
            b"f", b"0", text
        )
    else:
        layer = member(b"f", b"0", bytes(offset) + text + bytes(size - offset - 512))
    root = unpacked(tmp_path, layer)
    status = (root / "f").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20
    with open(root / "f", "rb") as stream:
        stream.seek(offset)
        assert stream.read(4) == b"data"


def test_what_real_tar_writes(tmp_path):
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(os.urandom(300_000))
    os.link(source / "a/b/file", source / "hard")
    os.symlink("a/b", source / "link")
    (source / ("n" * 200)).write_text("long")
    root = unpacked(tmp_path, build.tree(str(source)))
    assert (root / "hard").read_bytes() == (source / "hard").read_bytes()
    assert os.path.samefile(root / "hard", root / "a/b/file")
    assert sorted(os.listdir(root)) == sorted(os.listdir(source))


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_ten_thousand_files_take_two_seconds_at_most(tmp_path):
    """On a tmpfs, since ext4 searches long for a free inode after ten thousand were deleted (recently_deleted)."""
    layer = b"".join(member(b"d%d/f%d" % (i // 100, i), b"0", b"%d" % i) for i in range(10_000)) + END
    reference = build.archive(tmp_path / "i.tar", build.files([layer]))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        used = time.process_time()  # processor time, as wall time means nothing on a loaded machine
        assert unpack(reference, pathlib.Path(directory, "root")).files == 10_000
        assert time.process_time() - used < 2


def test_the_smallest_of_an_index_is_chosen_by_platform_and_tag(tmp_path):
    own = build.files([member(b"own", b"0") + END])
    other = build.files([member(b"other", b"0") + END])
    rows = []
    for content, platform, tag in ((own, os.uname().machine, "1"), (other, "other", "2")):
        row = json.loads(content["index.json"])["manifests"][0]
        row["platform"] = {"os": "linux", "architecture": build.MACHINE.get(platform, platform)}
        row["annotations"] = {"org.opencontainers.image.ref.name": tag}
        rows.append(row)
    content = own | other | {"index.json": json.dumps({"manifests": rows}).encode()}
    reference = build.layout(tmp_path / "layout", content)
    unpack(reference, tmp_path / "one")
    unpack(f"{reference}:2", tmp_path / "two")
    assert (os.listdir(tmp_path / "one"), os.listdir(tmp_path / "two")) == (["own"], ["other"])


@pytest.mark.parametrize("old", [True, False])
def test_one_of_several_in_an_archive_is_named_by_its_tag(tmp_path, old):
    """As written by `docker save a b` before version 25, and by it or `skopeo` since."""
    two = [build.files([member(name.encode(), b"0") + END]) for name in ("one", "two")]
    files = {**two[0], **two[1]}
    names = ("example/one:1", "example/two:1")
    if old:
        rows = []
        for found, name in zip(two, names):
            manifest = json.loads(
                found["blobs/" + json.loads(found["index.json"])["manifests"][0]["digest"].replace(":", "/")]
            )
            places = ["blobs/" + layer["digest"].replace(":", "/") for layer in manifest["layers"]]
            config = "blobs/" + manifest["config"]["digest"].replace(":", "/")
            rows.append({"Config": config, "RepoTags": [name], "Layers": places})
        del files["index.json"]
        files["manifest.json"] = json.dumps(rows).encode()
    else:
        rows = [json.loads(found["index.json"])["manifests"][0] for found in two]
        for row, name in zip(rows, names):
            row["annotations"] = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": name}
        files["index.json"] = json.dumps({"manifests": rows}).encode()
    reference = build.archive(tmp_path / "i.tar", files)
    for tag in ("example/two:1", "two:1"):
        root = tmp_path / tag.replace("/", "-")
        unpack(f"{reference}:{tag}", root)
        assert os.listdir(root) == ["two"]
    for tag in ("", ":1"):
        with pytest.raises(ImageError, match="2 images: example/one:1, example/two:1"):
            images.find(f"{reference}{tag}")
    with pytest.raises(ImageError, match="no image three in it"):
        images.find(f"{reference}:three")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("archive:/nowhere.tar", "No such file"),
        ("archive:/dev/null", "not a regular file"),
        ("oci:/nowhere", "No such file"),
        ("dir:/nowhere", "no such directory"),
        ("image:", "not an image"),
    ],
)
def test_a_missing_one_is_reported(reference, message):
    with pytest.raises(ImageError, match=message):
        images.find(reference)


@pytest.mark.parametrize("kind", ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json", ""])
def test_an_artifact_is_no_image(tmp_path, kind):
    """A chart, a signature, an attestation: the error says so, and not that the image is damaged."""
    content = build.files([b"no tar"], how="none")
    index = json.loads(content["index.json"])
    manifest = json.loads(content.pop("blobs/sha256/" + index["manifests"][0]["digest"][7:]))
    manifest["artifactType"] = "application/vnd.example"
    if kind:
        manifest["config"]["mediaType"] = kind
    text = json.dumps(manifest).encode()
    content["blobs/sha256/" + build.digest(text)[7:]] = text
    content["index.json"] = json.dumps({"manifests": [{"digest": build.digest(text), "size": len(text)}]}).encode()
    with pytest.raises(ImageError, match=rf"an artifact \({kind or 'application/vnd.example'}\)".replace("+", r"\+")):
        images.find(build.layout(tmp_path / "o", content))


def test_limits_of_entries_and_bytes(tmp_path):
    layer = b"".join(member(b"f%d" % i, b"0", b"x" * 1000) for i in range(100)) + END
    reference = build.archive(tmp_path / "i.tar", build.files([layer]))
    with pytest.raises(ImageError, match="more than 50 entries"):
        unpack(reference, tmp_path / "a", limits=Limits(entries=50))
    with pytest.raises(ImageError, match="more than 30000 bytes"):
        unpack(reference, tmp_path / "b", limits=Limits(total=30_000))
