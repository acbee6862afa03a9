"""Five hundred hostile archives: each is refused, or unpacks into its own directory and nowhere else."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import resource
import shutil
import stat

import pytest

from cntr import images
from cntr.errors import CntrError
from cntr.images import Limits, blueprint
from cntr.images.lint import lint
from tests.images import build
from tests.images.build import END, long_name, member, pax

LIMITS = Limits(entries=5000, total=64 << 20, extension=1 << 16, names=1 << 20)
OUT = b"../outside"  # from the root's own directory


def names(name: bytes) -> dict[str, bytes]:
    """The three kinds of prefix that give the next header NAME."""
    return {"ustar": b"", "gnu": long_name(name), "pax": pax({b"path": name})}


def links(target: bytes) -> dict[str, bytes]:
    return {"ustar": b"", "gnu": long_name(target, b"K"), "pax": pax({b"linkpath": target})}


def cases(outside: str) -> dict[str, list[bytes]]:
    """name → the layers."""
    absolute = outside.encode()
    found: dict[str, list[bytes]] = {}
    evil = [
        OUT + b"/new",
        b"a/../../outside/new",
        absolute + b"/new",
        b"..",
        b"../",
        b"./../outside/new",
        b"a/..",
        b"/..",
        b"//../outside/new",
    ]
    for index, name in enumerate(evil):
        for way, prefix in names(name).items():
            for kind in (b"0", b"5", b"2", b"6"):
                found[f"name-{index}-{way}-{kind.decode()}"] = [prefix + member(name, kind, link=b"x")]
    for index, target in enumerate(
        [OUT, absolute, b"/", b"..", b"/proc/self/cwd", b"/proc/self/root", b"../../../../../..", b"/proc/1/root"]
    ):
        for way, prefix in links(target).items():
            link = prefix + member(b"l", b"2", link=target)
            found[f"through-link-{index}-{way}"] = [link + member(b"l/new", b"0", b"x")]
            found[f"through-link-of-a-lower-layer-{index}-{way}"] = [link, member(b"l/new", b"0", b"x")]
            found[f"onto-link-{index}-{way}"] = [link + member(b"l", b"0", b"x")]
            found[f"directory-onto-link-{index}-{way}"] = [
                link + member(b"l/", b"5", mode=0o777),
                member(b"l/new", b"0", b"x"),
            ]
            found[f"whiteout-through-link-{index}-{way}"] = [link, member(b"l/.wh.secret")]
            found[f"opaque-through-link-{index}-{way}"] = [link, member(b"l/.wh..wh..opq")]
            found[f"hard-link-through-link-{index}-{way}"] = [
                link + member(b"h", b"1", link=b"l/secret") + member(b"h", b"0", b"x")
            ]
    for index, target in enumerate(
        [OUT + b"/secret", absolute + b"/secret", b"/etc/passwd", b"/proc/self/exe", b".", b"..", b"", b"d"]
    ):
        for way, prefix in links(target).items():
            found[f"hard-link-{index}-{way}"] = [
                member(b"d/", b"5") + prefix + member(b"h", b"1", link=target) + member(b"h", b"0", b"x")
            ]
    hidden = (
        b".wh...",
        b".wh..",
        b".wh.",
        b"a/.wh.../x",
        b".wh.a/b",
        b".wh..wh..opq/x",
        b".wh./x",
        b"../outside/.wh.secret",
        b"../.wh.outside",
        b"../outside/.wh..wh..opq",
    )
    for index, name in enumerate(hidden):
        found[f"whiteout-{index}"] = [member(b"a/x"), member(name)]
    for kind, device in ((b"3", (1, 1)), (b"4", (8, 0)), (b"3", (0, 0)), (b"4", (-1, -1)), (b"3", (1 << 40, 1 << 40))):
        found[f"device-{kind.decode()}-{device[0]}"] = [member(b"dev", kind, device=device, mode=0o666)]
    found["set-id"] = [member(b"su", b"0", b"x", mode=0o7777)]
    found["same-name-500-times"] = [b"".join(member(b"f", kind, link=b"f") for kind in (b"0", b"2", b"5", b"6") * 125)]
    found["entry-below-a-file"] = [member(b"f", b"0", b"x") + member(b"f/g", b"0", b"x")]
    found["too-many"] = [b"".join(member(b"f%d" % i, b"6") for i in range(6000))]
    found["deep"] = [long_name(b"d/" * 1900 + b"f") + member(b"x", b"0")]
    found["long-component"] = [long_name(b"n" * 300) + member(b"x", b"0")]
    found["long-path"] = [long_name(b"n/" * 5000) + member(b"x", b"0")]
    found["nul"] = [pax({b"path": b"a\0b"}) + member(b"x", b"0")]
    found["empty-name"] = [member(b"", b"0", b"x") + member(b".", b"0", b"x") + member(b"/", b"2", link=b"/etc")]
    found["root-is-a-link"] = [member(b".", b"2", link=absolute) + member(b"secret", b"0", b"x")]
    found["self-link"] = [member(b"l", b"1", link=b"l")]
    for size in (1 << 33, 1 << 62, -1, -512, (1 << 64) - 1):
        found[f"size-{size}"] = [member(b"f", b"0", b"x", size=size)]
        found[f"pax-size-{size}"] = [pax({b"size": str(size).encode()}) + member(b"f", b"0", b"x")]
        found[f"directory-size-{size}"] = [member(b"d/", b"5", size=size) + member(b"f", b"0")]
        found[f"extension-size-{size}"] = [member(b"x", b"x", size=size)]
    for value in (b"9" * 5000, b"-5", b"1e9", b"", b"nan", b"99999999999999999999"):
        for key in (b"size", b"mtime", b"uid", b"gid"):
            found[f"pax-{key.decode()}-{value[:8].decode()}"] = [pax({key: value}) + member(b"f", b"0", b"x")]
    for record in (
        b"5 a=b\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"-1 a=b\n",
        b"a",
        b"999999999999999999999999 a=b\n",
        b"6 abc\n",
        b"7 =b\nx",
    ):
        found[f"record-{record!r}"] = [member(b"x", b"x", record) + member(b"f", b"0")]
    found["many-extensions"] = [pax({b"path": b"f"}) * 100 + member(b"f", b"0")]
    found["global-extensions"] = [b"".join(pax({b"k%d" % i: b"v"}, b"g") for i in range(2000)) + member(b"f", b"0")]
    found["extension-bomb"] = [pax({b"comment": b"x" * 200_000}) + member(b"f", b"0")]
    for key in (
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"user.overlay.redirect",
        b"security.selinux",
        b"security.ima",
        b"",
        b"bogus",
        b"security.capability",
    ):
        found[f"xattr-{key.decode()}"] = [pax({b"SCHILY.xattr." + key: b"y" * 300}) + member(b"f", b"0", b"x")]
    found["xattr-large"] = [pax({b"SCHILY.xattr.user.x": b"y" * 60_000}) + member(b"f", b"0", b"x")]
    for rows in (
        b"0,1,0,1",
        b"5",
        b"-1,5",
        b"0,99999999999999999999",
        b"9999999999999,1",
        b"0,9",
        b"a,b",
        b"0,1," * 30_000 + b"0,1",
    ):
        found[f"sparse-{rows[:20].decode()}"] = [
            pax({b"GNU.sparse.map": rows[:60_000], b"GNU.sparse.size": b"10"}) + member(b"f", b"0", b"x")
        ]
    for text in (b"99999999\n", b"1\n", b"x\n", b"1\n0\n999\n", b"\n" * 512):
        found[f"sparse-data-{text[:8]!r}"] = [
            pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"100", b"GNU.sparse.name": OUT + b"/new"})
            + member(b"f", b"0", text.ljust(512, b"\0"))
        ]
    found["sparse-huge"] = [pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"9" * 15}) + member(b"f", b"0", b"x")]
    deep = long_name(b"d/" * 510 + b"f") + member(b"x", b"0")
    for name, onto in {
        "whiteout": member(b".wh.d"),
        "opaque": member(b".wh..wh..opq"),
        "file": member(b"d", b"0", b"x"),
        "link": member(b"d", b"2", link=absolute),
        "whiteout-spares": deep + member(b".wh.d"),
    }.items():
        found[f"deep-{name}-onto-it"] = [deep, onto]
    found["deep-ends-in-512-links"] = [deep + b"".join(member(b"l%d" % i, b"2", link=b"d/" * 300) for i in range(512))]
    found["global-memory"] = [
        b"".join(pax({b"SCHILY.xattr.user.k%d" % i: b"v" * 60_000}, b"g") + member(b"f", b"6") for i in range(40))
    ]
    long = b"/".join([b"n" * 250] * 15)
    found["names-memory"] = [b"".join(long_name(long + b"/%d" % i) + member(b"x", b"6") for i in range(1000))]
    found["links-memory"] = [b"".join(long_name(long, b"K") + member(b"%d" % i, b"2", link=b"x") for i in range(1000))]
    for order in ("before", "behind"):  # of one layer: its own entries are kept in any order
        own = member(b"p/own", b"0", b"own")
        lower = member(b"p/lower", b"0", b"x") + member(b"p/sub/lower", b"0", b"x")
        for name, cover in {
            "parent-whiteout": member(b".wh.p"),
            "opaque": member(b"p/.wh..wh..opq"),
            "opaque-root": member(b".wh..wh..opq"),
            "own-whiteout": member(b"p/.wh.own"),
            "opaque-twice": member(b"p/.wh..wh..opq") * 2,
            "opaque-below": member(b"p/sub/.wh..wh..opq") + member(b"p/.wh.sub"),
        }.items():
            found[f"{name}-{order}"] = [lower, cover + own if order == "before" else own + cover]
    for index, target in enumerate((b"usr/lib", b"/usr/lib", b"../usr/lib", b"lib", b"./lib/../lib")):
        link = member(b"usr/lib/x", b"0", b"x") + member(b"lib", b"2", link=target)
        found[f"parent-is-a-link-{index}"] = [link, member(b"lib/new", b"0", b"x")]
        found[f"parent-is-a-link-{index}-hard"] = [link, member(b"h", b"1", link=b"lib/x")]
        found[f"parent-is-a-link-{index}-whiteout"] = [link, member(b"lib/.wh.x")]
    base = member(b"f", b"0", b"lower")
    found["hard-link-to-a-lower-file-then-changed"] = [
        base,
        member(b"g", b"1", link=b"f") + member(b"f", b"0", b"upper"),
    ]
    found["hard-link-to-what-is-whited-out"] = [base, member(b".wh.f") + member(b"g", b"1", link=b"f")]
    found["hard-link-to-a-link"] = [member(b"l", b"2", link=absolute + b"/secret") + member(b"h", b"1", link=b"l")]
    found["hard-link-with-data"] = [base + member(b"g", b"1", b"x" * 600, link=b"f")]
    found["hard-link-onto-a-directory"] = [base + member(b"d/", b"5") + member(b"d", b"1", link=b"f")]
    found["case"] = [member(b"A", b"0", b"x") + member(b"a", b"2", link=absolute) + member(b"A/x", b"0", b"x")]
    for name in (
        b"\xff\xfe",
        "e\u0301".encode(),
        "\u202e".encode(),
        b"\x1b[2J",
        b"a\nb",
        b"\xed\xa0\x80",
        b" ",
        b"-rf",
    ):
        found[f"name-{name!r}"] = [member(name, b"0", b"x") + member(name + b"/x", b"0", b"x")]
    for key in (
        b"path",
        b"linkpath",
        b"size",
        b"GNU.sparse.name",
        b"GNU.sparse.major",
        b"hdrcharset",
        b"GNU.sparse.map",
    ):
        for value in (b"", b"1", b"BINARY", b"../outside/new", b"\xff" * 9):
            records = pax({key: value}, b"g")
            found[f"global-{key.decode()}-{value!r}"] = [
                records + member(b"f", b"0", b"x") + member(b"g", b"2", link=b"f")
            ]
    sparse = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"4096"}
    for name, text in {
        "overlap": b"2\n0\n512\n100\n1\n",
        "negative": b"1\n-1\n5\n",
        "many": b"100000\n",
        "zero": b"0\n",
    }.items():
        found[f"sparse-1.0-{name}"] = [pax(sparse) + member(b"f", b"0", text.ljust(512, b"\0") + bytes(512))]
    old = b"".join(b"%011o\0%011o\0" % row for row in ((0, 512), (512, 1 << 32)))
    for name, real in {"huge": 1 << 32, "small": 1, "all": (1 << 32) + 512}.items():
        tail = bytes(386 - 345) + old + bytes(24 * 2) + b"\1" + b"%011o\0" % real
        found[f"sparse-old-{name}"] = [member(b"f", b"S", bytes(512), tail=tail[:160]) + bytes(512) + b"\1" * 512]
    for value in (b"-0o7", b"0o17777777", b"1_0", b"+5", b" 7 ", b"\xd9\xa1"):
        header = bytearray(member(b"f", b"0", b"x"))
        header[124:136] = value.ljust(12, b"\0")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
        found[f"number-{value!r}"] = [bytes(header)]
    found["label-and-dump"] = [member(b"v", b"V") + member(b"f", b"0")]
    found["end-in-the-middle"] = [member(b"f", b"0", b"x") + bytes(512) + member(b"../outside/new", b"0", b"x")]
    found["garbage"] = [b"not a tar at all" * 64]
    found["checksum"] = [b"\1" + member(b"f", b"0", b"x")[1:]]
    found["cut"] = [member(b"f", b"0", b"x" * 4096)[:1500]]
    found["unknown-kind"] = [member(b"f", b"Z", b"x")]
    found["ids"] = [member(b"f", b"0", uid=-1, gid=(1 << 32) - 1)]
    found["zero-bomb"] = [member(b"f", b"0", size=63 << 20) + bytes(63 << 20)]
    return found


NAMES = sorted(cases("/x/outside"))
GROUPS = [NAMES[start::16] for start in range(16)]  # setting up a test for each would take longer than running it


def test_there_are_five_hundred():
    assert len(NAMES) > 500


def snapshot(root: pathlib.Path) -> list[tuple[object, ...]]:
    found = []
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append((str(path), status.st_mode, status.st_nlink, status.st_uid, status.st_mtime_ns, content))
    return found


def unpack_somehow(reference: str, root: pathlib.Path) -> str:
    """Return "" if it unpacked, else the message of the refusal."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with images.find(reference) as image:
            image.unpack(fd, limits=LIMITS, devices=False)
        return ""
    except CntrError as error:
        return error.message
    finally:
        os.close(fd)


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_it_is_refused_or_harmless(tmp_path, group):
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    before = snapshot(outside)
    made = cases(str(outside))
    for case in GROUPS[group]:
        root.mkdir()
        reference = build.archive(
            tmp_path / "image.tar", build.files([layer + END for layer in made[case]], how="none")
        )
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        message = unpack_somehow(reference, root)
        assert snapshot(outside) == before, (case, message)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 256 << 10, case
        assert message.isprintable(), case
        check_tree(case, root, outside)
        shutil.rmtree(bytes(root))


def check_tree(case: str, root: pathlib.Path, outside: pathlib.Path) -> None:
    foreign = [path.stat() for path in (outside, outside / "secret", pathlib.Path("/etc/passwd"))]
    inodes = {(status.st_dev, status.st_ino) for status in foreign}
    used = 0
    for directory, subdirectories, files in os.walk(bytes(root)):
        for name in subdirectories + files:
            if len(directory) > 2000:
                continue
            status = os.lstat(os.path.join(directory, name))
            used += status.st_blocks * 512
            assert not stat.S_ISCHR(status.st_mode), case
            assert not stat.S_ISBLK(status.st_mode), case
            assert (status.st_dev, status.st_ino) not in inodes, case
            keys = os.listxattr(os.path.join(directory, name), follow_symlinks=False)
            assert not [key for key in keys if "overlay" in key or key.startswith("trusted.")], case
    assert used < 96 << 20, case


def lies(layer: bytes) -> dict[str, dict[str, bytes]]:
    """name → the files of a layout with false values."""
    good = build.files([layer])
    index = json.loads(good["index.json"])
    manifest = "blobs/sha256/" + index["manifests"][0]["digest"][7:]
    configuration = "blobs/sha256/" + json.loads(good[manifest])["config"]["digest"][7:]
    blob = next(name for name in good if name.startswith("blobs/") and name not in (manifest, configuration))
    other = "sha256:" + "0" * 64
    bomb = gzip.compress(bytes(80 << 20))
    return {
        "layer-changed": good | {blob: build.compressed(layer.replace(b"slim", b"evil"), "gzip")},
        "layer-longer": good | {blob: good[blob] + b"more"},
        "layer-cut": good | {blob: good[blob][:-20]},
        "layer-missing": {name: data for name, data in good.items() if name != blob},
        "manifest-changed": good | {manifest: good[manifest] + b" "},
        "configuration-changed": good | {configuration: good[configuration] + b" "},
        "diff-id": build.files([layer], diff_ids=[other]),
        "diff-ids-missing": build.files([layer], diff_ids=[]),
        "diff-ids-no-list": build.files([layer], diff_ids={"a": 1}),
        "digest-no-digest": build.files([layer], row={"digest": "../../../etc/passwd"}),
        "digest-md5": build.files([layer], row={"digest": "md5:" + "0" * 32}),
        "digest-short": build.files([layer], row={"digest": "sha256:00"}),
        "size": build.files([layer], row={"size": 5}),
        "manifests-a-number": good | {"index.json": b'{"manifests": 5}'},
        "manifests-true": good | {"index.json": b'{"manifests": true}'},
        "manifest-json-half-a-character": {"manifest.json": b'[{"Config": "\\ud800", "Layers": ["\\udfff"]}]'},
        "index-infinite": good | {"index.json": b'{"manifests": [' + b"9" * 5000 + b"]}"},
        "index-in-itself": _in_itself(good),
        "layer-two-members-and-garbage": good | {blob: good[blob] + gzip.compress(b"x") + b"garbage"},
        "layer-zstd-cut": good | {blob: build.compressed(layer, "zstd")[:-4]},
        "layer-zstd-magic-alone": good | {blob: b"\x28\xb5\x2f\xfd"},
        "layer-xz": good | {blob: b"\xfd7zXZ\0" + good[blob]},
        "bomb": good | {blob: bomb},
        "index-huge": good | {"index.json": b'{"manifests": [' + b" " * (9 << 20) + b"]}"},
        "index-deep": good | {"index.json": b"[" * 500_000},
        "index-a-list": good | {"index.json": b"[]"},
        "index-empty": good | {"index.json": b"{}"},
        "index-odd": good | {"index.json": b'{"manifests": [5, null, {"digest": 7}]}'},
        "manifest-json-odd": {"manifest.json": b'[{"Config": 5, "Layers": "x"}]'},
        "manifest-json-out": {"manifest.json": b'[{"Config": "../../../../etc/passwd", "Layers": []}]'},
        "nothing": {"x": b""},
    }


def _in_itself(good: dict[str, bytes]) -> dict[str, bytes]:
    """An index of an index of … of an index."""
    found, row = dict(good), json.loads(good["index.json"])["manifests"][0]
    for _ in range(8):
        text = json.dumps({"schemaVersion": 2, "manifests": [row]}).encode()
        row = {"digest": build.digest(text), "size": len(text)}
        found["blobs/sha256/" + row["digest"][7:]] = text
    return found | {"index.json": json.dumps({"manifests": [row]}).encode()}


def test_what_a_layer_has_itself_is_spared(tmp_path):
    made = cases("/x/outside")
    for case in made:
        if not case.startswith(
            (
                "parent-whiteout-",
                "opaque-before",
                "opaque-behind",
                "opaque-twice-",
                "opaque-below-",
                "deep-whiteout-spares",
            )
        ):
            continue
        root = tmp_path / case
        root.mkdir()
        layers = [layer + END for layer in made[case]]
        assert unpack_somehow(build.archive(tmp_path / "image.tar", build.files(layers, how="none")), root) == "", case
        if case.startswith("deep"):
            assert (root / ("d/" * 510) / "f").is_file()
        else:
            below = "p/lower" if case.startswith("opaque-below") else ""
            assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(
                ["p/own", *below.split()]
            ), case


def test_half_a_surrogate_pair_in_a_configuration(tmp_path):
    """It names no file and causes no traceback; a whole pair is kept."""
    config = {"Entrypoint": ["/\ud800"], "Env": ["A=\udfff", "B=\U0001f600"], "WorkingDir": "/\ud800", "User": "\ud800"}
    reference = build.archive(tmp_path / "image.tar", build.files([member(b"f") + END], config))
    with images.find(reference) as image:
        made = blueprint.of_image(image)
    assert made.environment["B"] == "\U0001f600"
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "not found" in lint(root, made.command(), made.environment, made.directory)[-1]
    finally:
        os.close(root)


def test_a_compressed_archive_does_not_fill_the_disk(tmp_path, monkeypatch):
    saved = tmp_path / "image.tar.gz"
    saved.write_bytes(gzip.compress(bytes(8 << 20)))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result((4096, 4096, 1000, 1000, 1000, 9, 9, 9, 0, 255)))
    with pytest.raises(CntrError, match="nearly full"):
        images.find(f"archive:{saved}")


@pytest.mark.parametrize("kind", ["archive", "oci"])
def test_what_does_not_agree_is_refused(tmp_path, kind):
    write = build.archive if kind == "archive" else build.layout
    for lie, content in lies(member(b"f", b"0", b"slim") + END).items():
        root = tmp_path / f"root-{lie}"
        root.mkdir()
        message = unpack_somehow(write(tmp_path / f"image-{lie}", content), root)
        assert message, lie
        assert message.isprintable(), lie


def test_a_layout_whose_files_lead_out_is_refused(tmp_path):
    content = build.files([member(b"f", b"0", b"x") + END])
    reference = build.layout(tmp_path / "layout", content)
    blob = next((tmp_path / "layout/blobs/sha256").iterdir())
    moved = blob.rename(tmp_path / "outside")
    blob.symlink_to(moved)
    (tmp_path / "root").mkdir()
    assert "Too many levels of symbolic links" in unpack_somehow(reference, tmp_path / "root")


def test_a_fifo_in_a_layout_does_not_block(tmp_path):
    reference = build.layout(tmp_path / "layout", build.files([member(b"f", b"0", b"x") + END]))
    (tmp_path / "layout/index.json").unlink()
    os.mkfifo(tmp_path / "layout/index.json")
    (tmp_path / "root").mkdir()
    assert "not a regular file" in unpack_somehow(reference, tmp_path / "root")
