"""Broken texts: what /proc shows of a container, engines' state files, and what comes over a session's socket and a copy's pipe.

Each parser takes what it is given for what it is or says ``ValueError`` and its like, which its caller catches; what it gives out holds
what it promises. ``nox -s fuzz -- --inputs 10000000`` goes on for longer than the tests have time.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest

from cntr import errors
from cntr.attach import environment, etc_files
from cntr.attach.channel import Reader
from cntr.attach.exec_handler import Handler
from cntr.audit import toml
from cntr.cp import stream
from cntr.engines import docker, evidence, plugins, store, units, users
from cntr.engines.container import Refused
from cntr.engines.containers_storage import Known, Store
from cntr.engines.kubernetes import _parse
from cntr.engines.nspawn import machine_name
from cntr.linux import procfs

INPUTS = int(os.environ.get("CNTR_FUZZ_INPUTS", "0")) or 40_000  # of all parsers together
SEED = int(os.environ.get("CNTR_FUZZ_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
TOKENS = (
    b"\0", b"\n", b":", b"::", b"/", b"/..", b"../", b" - ", b" ", b"\t", b"\\040", b"\\134", b"=", b",", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xff", b"-1",
    b"0", b"4294967295", b"9" * 5000, b"\xd9\xa3", b"x" * 300, b"[", b"]" * 40, b"{" * 2000, b'"', b"null", b"true", b"1e999", b"NaN", b"$(id)", b"root",
)  # fmt: skip
WRONG = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
)  # what readers of state files catch
ID = "ab" * 32


def mutated(chance: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            data[at:at] = chance.choice(TOKENS)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 20)]
        elif kind == 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 3:
            other = chance.randrange(len(data) + 1)
            data[at:at] = data[other : other + chance.randrange(60)]
        elif kind == 4:
            data[at : at + chance.randrange(30)] = chance.choice(TOKENS)
        else:
            del data[at:]
    return bytes(data)


def printable_lines(text: str, fields: int) -> None:
    for line in text.splitlines():
        assert len(line.split(":")) == fields, line
        assert line.isascii(), line
        assert line.isprintable(), line


def passwd(data: bytes) -> None:
    text = os.fsdecode(data)
    written = etc_files.passwd(
        text, "daemon:x:1:1:d:/usr/sbin:/usr/sbin/nologin\n", (0, 0, "root", "/root", "/bin/bash")
    )
    printable_lines(written, 7)
    rows = [line.split(":") for line in written.splitlines()]
    assert len({row[0] for row in rows}) == len({row[2] for row in rows}) == len(rows)
    assert all(etc_files.safe_name(row[0]) and (row[5], row[6]) in HOMES for row in rows)
    assert [row[2] for row in rows if row[0] == "root"] == ["0"]
    for user in ("0", "1000", "app"):
        entry = procfs.passwd_entry(text, user)
        assert entry is None or user in (entry[0], str(entry[1])) or int(user) == entry[1]


HOMES = {("/root", "/bin/bash"), ("/", "/bin/sh"), ("/usr/sbin", "/usr/sbin/nologin")}


def group(data: bytes) -> None:
    text = os.fsdecode(data)
    printable_lines(etc_files.group(text, "shadow:x:42:\n"), 4)
    procfs.groups_of(text, "app")
    procfs.group_id(text, "app")


def copies(data: bytes) -> None:
    for name in etc_files.COPIED:
        copied = etc_files.copied(name, data)
        assert len(copied) <= etc_files.LIMIT
        assert name == "localtime" or all(byte in b"\t\n" or 0x20 <= byte < 0x7F for byte in copied)


def variables(data: bytes) -> None:
    text = os.fsdecode(data)
    procfs.environ_is_overwritten(text)
    found = procfs.environ(text)
    assert all(key and "=" not in key and "\0" not in key + value for key, value in found.items())
    listed = environment.listing(found).decode()
    assert all(line.isprintable() for line in listed.split("\n"))
    assert listed.count("\n") == len(found)


def mounts(data: bytes) -> None:
    """Names are the container's to choose, and the kernel's escapes lead back to them; the rest of a line is the kernel's."""
    name = os.fsdecode(data.replace(b"\0", b""))
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)
    line = f"36 35 98:0 /{escaped} /mnt/{escaped} rw,noatime master:1 - ext3 {escaped or 'x'} rw,errors=continue\n"
    (mount,) = procfs.mountinfo(line)
    assert (mount.root, mount.mount_point, mount.fstype) == (f"/{name}", f"/mnt/{name}", "ext3")
    assert procfs.mountinfo(line[:-5]) == []


def texts(data: bytes) -> None:
    text = os.fsdecode(data)
    procfs.status(text)
    for parse in (procfs.start_time, procfs.parent_pid, procfs.id_map, procfs.limits):
        try:
            parse(text)
        except WRONG:
            continue


def control_groups(data: bytes) -> None:
    text = os.fsdecode(data)
    for path in procfs.cgroups(text).values():
        assert units.owner_in(path, "web.service") >= -1
    assert "\n" not in "".join(procfs.cgroups(text))


def name_of_a_process(data: bytes) -> None:
    """A process calls itself what it likes, in the second field of stat."""
    name = os.fsdecode(data.replace(b"\0", b"")[:15])
    stat = f"12 ({name}) S 7 " + " ".join(str(number) for number in range(5, 60))
    assert procfs.parent_pid(stat) == 7
    assert procfs.start_time(stat) == 22


def shown(data: bytes) -> None:
    text = errors.printable(os.fsdecode(data))
    assert text.isprintable()
    assert errors.printable(data.decode("latin-1")).isprintable()


def json_of_docker(data: bytes) -> None:
    record = store.parse(os.fsdecode(data))
    found = docker.container(record, 1000)
    assert found.pid > 0
    raise AssertionError("no such container runs here")


def index_of_podman(data: bytes) -> None:
    for row in store.parse(os.fsdecode(data)) or []:
        known = Known(Store("/nowhere", ["/nowhere"], 1000), "overlay-containers", row)
        assert store.is_whole_id(known.id)
        assert all(isinstance(name, str) for name in known.names)
        for name in known.names:
            pod = _parse(name, known.image)
            assert pod is None or pod.name().count("/") >= 2


def storage_conf(data: bytes) -> None:
    assert "\n" not in store.setting(os.fsdecode(data), "storage", "graphroot")


def answers_of_users(data: bytes) -> None:
    fields = os.fsdecode(data).split("\0")
    for at in range(0, len(fields) - users.FIELDS + 1, users.FIELDS):
        found = users.container(4_000_000_000, fields[at : at + users.FIELDS], {"docker"})
        assert found is None or found.pid == 0


def monitors(data: bytes) -> None:
    arguments = os.fsdecode(data).split("\0")
    evidence.option(arguments, "-c", "--name")
    machine_name(os.getpid(), arguments)


def entry_points(data: bytes) -> None:
    """Of an installed package that declares engines: what is not there, or anybody's, is not imported."""
    assert plugins._declared(f"[cntr.engines]\nx = {os.fsdecode(data)}", "/nowhere") == []


class Alive:
    pid, start_time = 4242, 17

    def alive(self) -> bool:
        return True


def question(data: bytes) -> None:
    """Of `cntr exec` in a session: what becomes of it is one command line, whose options are ours."""
    handler = Handler.__new__(Handler)
    handler.target, handler.flags = Alive(), ["--no-cgroup"]  # type: ignore[assignment]
    line = handler._line(data)
    assert line[:4] == ["exec", "pid:4242@17", "--no-cgroup", "-w"]
    end = 5
    while line[end] == "-e":
        assert "=" in line[end + 1]
        end += 2
    assert line[end] == "--"
    assert len(line) > end + 1


def frames(data: bytes) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, data[:4096])
        os.close(writing)
        for frame in Reader(reading).frames():
            assert frame
    finally:
        os.close(reading)


def copied_items(data: bytes) -> None:
    _, name, _ = stream.unpack_item(data)
    assert name not in (b"", b".", b"..")
    assert b"/" not in name


def policy(data: bytes) -> None:
    toml.parse(data.decode("utf-8", "replace"))


DOCKER = b"""{"Id": "%s", "Name": "/web", "State": {"Pid": 999999999, "Status": "running", "Paused": false, "ExitCode": 0},
"Config": {"Image": "x", "Env": ["A=b"], "WorkingDir": "/"}, "HostConfig": {"Runtime": "runc"}}""" % ID.encode()
PODMAN = (
    b'[{"id": "%s", "names": ["web", "k8s_c_p_n_u_0"], "metadata": "{\\"image-name\\": \\"x\\"}", "layer": "%s"}]'
    % ((ID.encode(),) * 2)
)
META = stream.Meta(0o100644, 0, 0, 1, 1, 5, linked=False)
# parser → (seeds, what it may say instead)
PARSERS: dict[str, tuple[Callable[..., None], tuple[bytes, ...], tuple[type[BaseException], ...]]] = {
    "passwd": (passwd, (b"root:x:0:0:r:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",), ()),
    "group": (group, (b"root:x:0:\napp:x:1000:app,root\n",), ()),
    "hosts": (copies, (b"127.0.0.1 localhost\n", b"TZif2\0\0\0\0", b"name\n"), ()),
    "environ": (variables, (b"PATH=/bin\0HOME=/\0A=b=c\0", b"nginx: master process\0"), ()),
    "mountinfo": (mounts, (b"a b\\c", b"proc/1 - fuse x"), ()),
    "status": (texts, (b"Name:\tx\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\n", b"0 100000 65536\n", b"1 (x) S 1 2 3 " + b"0 " * 40), ()),
    "cgroup": (control_groups, (b"0::/system.slice/web.service\n1:name=systemd:/user.slice/user-1000.slice/user@1000.service\n",), ()),
    "stat": (name_of_a_process, (b"x) S 1 (", b"app"), ()),
    "printable": (shown, (b"web", "wéb\u202e\x9b".encode()), ()),
    "docker": (json_of_docker, (DOCKER,), (*WRONG, Refused, RecursionError)),
    "podman": (index_of_podman, (PODMAN,), (*WRONG, RecursionError)),
    "storage.conf": (storage_conf, (b'[storage]\ngraphroot = "/var/lib/x" # y\n',), ()),
    "users": (answers_of_users, (b"\0".join([b"c", b"docker", b"web", b"1", b"ab", b"x", b"running", b"1"]),), (ValueError,)),
    "monitors": (monitors, (b"conmon\0-c\0ab\0-n\0web\0-p\0/run/x/pidfile", b"systemd-nspawn\0-bD/srv/deb\0-M\0x"), ()),
    "entry points": (entry_points, (b"some.module", b"x\n[other]\ny = z"), (OSError, *WRONG)),
    "question": (question, (b"/\x001\0A=b\0true", b"/x\x000\0sh\0-c\0true"), (ValueError,)),
    "frames": (frames, (b"\x06\0note\0x", b"\x0a\0failed\0a\x001"), (ValueError,)),
    "items": (copied_items, (stream.pack_item(META, b"name", b"target"),), (stream.ProtocolError, struct.error)),
    "policy": (policy, (b'[record]\nrequire = true\nfile = "/x"\n[[allow]]\nusers = ["@a", "b"]\n',), (toml.TomlError,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_fuzz(name: str) -> None:
    parser, seeds, allowed = PARSERS[name]
    chance = random.Random(SEED)
    for number in range(INPUTS // len(PARSERS)):
        data = mutated(chance, chance.choice(seeds))
        try:
            parser(data)
        except allowed:
            continue
        except BaseException as error:
            raise AssertionError(
                f"seed {SEED}, input {number} of {name}: {type(error).__name__}: {error}: {data!r}"
            ) from error
