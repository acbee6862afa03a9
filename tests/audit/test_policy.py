"""/etc/cntr.conf: how it is read, what is refused, and that a required record is written."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cntr import images
from cntr.audit import WIDENING, policy, toml
from cntr.cli.options import COMMANDS
from cntr.engines import Container
from cntr.errors import CntrError, Refused
from cntr.images.blueprint import Blueprint
from cntr.images.room import Room
from tests.audit.support import audit_lock, only
from tests.nest import busybox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a policy is root's: needs root")


def swapped(link: pathlib.Path, target: str) -> None:
    """Point LINK at TARGET, atomically."""
    link.unlink()
    link.symlink_to(target)


# --- the language ------------------------------------------------------------------------------------------------------

PIECES = (
    """[a] [[a]] a b-1 = = true false "x" 'y\\' "\\u00e9\\n" " ' #c [ ] , 1 "" '' \\ ä a.b {}""".split(),
    ["\n", "\r\n", " ", "\t", "[ b ]", "\x00", "\x7f", '"' * 3],
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.sampled_from([*PIECES[0], *PIECES[1]]), max_size=14).map("".join)
    | st.lists(st.sampled_from(["[a]", 'k="v"', "k=[", '"x"', ",", "]", "#"]), max_size=9).map("\n".join)
)
def test_what_is_accepted_means_what_toml_says(text):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has the module to compare with")
    try:
        tables = toml.parse(text)
    except toml.TomlError as error:
        assert 1 <= error.line <= text.count("\n") + 1
        return
    expected: dict[str, object] = {}
    for table in tables:
        found = {key: value for key, (value, _) in table.items.items()}
        if not table.name:
            expected.update(found)
        elif table.repeated:
            expected.setdefault(table.name, []).append(found)  # type: ignore[attr-defined]
        else:
            expected[table.name] = found
    assert tomllib.loads(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("[session]\nreason = true\nresaon = true\n", 3, "resaon"),
        ("# c\n[sitting]\n", 2, "sitting"),
        ("reason = true\n", 1, "outside"),
        ("[session]\nreason = 'yes'\n", 2, "true or false"),
        ("[session]\nforbid = ['--root']\n", 2, "--root"),
        ("[session]\nforbid = [\n'--force',\n1]\n", 2, "forbid"),
        ("[session]\nlimit = '8 hours'\n", 2, "8 hours"),
        ("[session]\nlimit = '0m'\n", 2, "0m"),
        ("[[allow]]\nusers = []\n", 2, "users"),
        ("[[allow]]\ncommands = ['ps']\n", 2, "ps"),
        ("[allow]\nusers = ['root']\n", 1, "[[allow]]"),
        ("[record]\nfile = 'relative'\n", 2, "absolute"),
        ("[record]\nfile = '/var/../etc/x'\n", 2, "absolute"),
        ("[record]\nrequire = true\njournal = false\n", 1, "nowhere"),
        ("[record]\nrequire = true\nrequire = false\n", 3, "already"),
        ("[record]\n[session]\n[record]\n", 3, "already"),
        ("[session]\nreason = true \x1b[2J\n", 2, "control"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_line(tmp_path, text, line, word):
    path = tmp_path / "cntr.conf"
    path.write_text(text)
    with pytest.raises(CntrError) as raised:
        policy.load(str(path))
    assert word in raised.value.message
    if word != "forbid":
        assert f": line {line}: " in raised.value.message
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(
    "what", ["link", "fifo", "directory", "group-writable", "another's", "huge", "no UTF-8", "device"]
)
def test_a_file_that_is_not_roots_alone_is_refused(tmp_path, what):
    path = tmp_path / "cntr.conf"
    path.write_text("[session]\nreason = true\n")
    os.chmod(path, 0o664 if what == "group-writable" else 0o644)
    if what == "another's":
        os.chown(path, 1000, 1000)
    elif what == "huge":
        path.write_text("#" * (policy.LIMIT + 1))
    elif what == "no UTF-8":
        path.write_bytes(b"[session]\n#\xff\n")
    elif what in ("link", "fifo", "directory", "device"):
        path.unlink()
        {
            "link": lambda: path.symlink_to("/dev/null"),
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
            "device": lambda: os.mknod(path, 0o644 | 0o020000, os.makedev(1, 5)),
        }[what]()
    with pytest.raises(CntrError) as raised:
        policy.load(str(path))
    assert str(path) in raised.value.message


# --- users, targets, options -------------------------------------------------------------------------------------------


def rules(tmp_path, text):
    path = tmp_path / "cntr.conf"
    path.write_text(text)
    return policy.load(str(path))


def test_options_are_forbidden_by_name_and_value(tmp_path):
    found = rules(tmp_path, "[session]\nforbid = ['--tools host:all', '--share']\n")
    for widening in (["--privileged"], ["--tools web"], []):
        found.check("attach", "", widening)
    for widening in (["--tools host:all"], ["--privileged", "--share /x:rw"]):
        with pytest.raises(Refused, match="is forbidden by the policy"):
            found.check("attach", "", widening)


def test_what_widens_are_options_that_there_are_and_the_page_lists_them():
    known = {option.names[-1] for command in COMMANDS for option in command.options}
    assert set(WIDENING) <= known
    page = (pathlib.Path(busybox.REPOSITORY) / "docs/audit.md").read_text()
    assert [name for name in WIDENING if f"`{name}`" not in page] == []


def test_users_are_those_who_logged_in_not_those_they_became(tmp_path, monkeypatch):
    found = rules(
        tmp_path,
        "[[allow]]\nusers = ['root', '@daemon']\ntargets = ['docker:web*', 'image:tools*']\n"
        "[[allow]]\nusers = ['1000']\ncommands = ['cp']\n",
    )
    container = policy_container("docker", "web-1")
    for login, sudo, command, allowed in (
        (None, "", "attach", True),
        (None, "1000", "attach", False),
        (0, "1000", "attach", True),  # sudo's variable counts only without a login uid
        (1000, "0", "attach", False),
        (1000, "", "cp", True),
        (1, "", "exec", True),  # daemon's group
        (65534, "", "attach", False),
    ):
        monkeypatch.setattr(policy.who, "login_uid", lambda login=login: login)
        monkeypatch.setenv("SUDO_UID", sudo)
        try:
            found.check(command, "", [])
            found.check_target(command, "typed", container)
        except Refused:
            assert not allowed, (login, sudo, command)
        else:
            assert allowed, (login, sudo, command)


def policy_container(engine, name, **more):
    return Container(engine, name, os.getpid(), **more)


def test_a_process_counts_as_the_container_it_is_in(tmp_path, monkeypatch):
    from cntr.engines import listing

    monkeypatch.setattr(policy.who, "login_uid", lambda: 0)
    found = rules(tmp_path, "[[allow]]\ntargets = ['docker:web']\n")
    process = policy_container("pid", str(os.getpid()))
    for known, allowed in (
        ([], False),
        ([policy_container("docker", "web")], True),
        ([Container("docker", "web", 1)], None),
    ):
        monkeypatch.setattr(listing, "running", lambda known=known: (known, []))
        if allowed is None:  # this test may or may not run in pid 1's namespaces
            allowed = policy._namespaces(1) == policy._namespaces(os.getpid())
        if allowed:
            found.check_target("exec", "", process)
        else:
            with pytest.raises(Refused):
                found.check_target("exec", "", process)


def test_targets_are_the_engines_names(tmp_path, monkeypatch):
    monkeypatch.setattr(policy.who, "login_uid", lambda: 0)
    found = rules(tmp_path, "[[allow]]\ntargets = ['docker:web*', 'docker:0123*', 'image:tools*']\n")
    for container in (
        policy_container("docker", "web"),
        policy_container("docker", "db", id="0123ab"),
        policy_container("docker", "x", image="tools:1", state="image"),
    ):
        found.check_target("attach", "", container)
    for container in (
        policy_container("podman", "web"),
        policy_container("docker", "db", id="ff", image="tools:1"),  # a container of that image, not the image
        policy_container("docker", "web", image="web", state="image"),
    ):
        with pytest.raises(Refused):
            found.check_target("attach", "docker:web", container)


def test_a_file_of_this_machine_is_its_place_and_not_what_it_is_called(place, tmp_path):
    """A caller may name a link like an allowed image, and point it at the root of the machine."""
    os.chmod(tmp_path, 0o755)
    (tmp_path / "nginx").symlink_to("/")
    here = tmp_path / "x:web"
    here.symlink_to("/etc")
    place.policy = "[[allow]]\ntargets = ['image:nginx*', '*:web']\n"
    for words in (
        ["exec", "dir:nginx", "--", "true"],
        ["exec", f"dir:{tmp_path}/nginx", "--", "true"],
        ["mount", str(here), str(tmp_path)],
    ):
        done = place.cntr(*words, cwd=str(tmp_path))
        assert "is not allowed for root" in busybox.one_line_and_hint(done), words
    real = tmp_path / "real"
    real.mkdir()
    place.policy = f"[[allow]]\ntargets = ['dir:{real}']\n"
    refused = place.cntr("exec", f"dir:{tmp_path}/nginx", "--", "true")
    assert "dir:/ is not allowed" in busybox.one_line_and_hint(refused), "the policy is asked about the link's target"


def test_what_was_asked_about_is_what_is_opened(tmp_path):
    """A link may point at something allowed during the check and elsewhere when it is opened."""
    for name in ("allowed", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "link"
    link.symlink_to("closed")
    image = images.find(f"dir:{link}")
    swapped(link, "allowed")
    assert image.reference == str(tmp_path / "closed"), "the policy is asked about this name"
    (lower,) = image.lower_directories()
    room = Room.__new__(Room)
    room.made = Blueprint("dir", image.reference)
    name = room._name(lower)
    assert os.listdir(name) == ["file"]
    os.close(int(os.path.basename(name)))
    os.rename(tmp_path / "closed", tmp_path / "moved")
    (tmp_path / "closed").symlink_to("moved")
    with pytest.raises(OSError, match="symbolic"):
        room._name(lower)


def test_a_mount_is_of_what_the_policy_was_asked_about(place, tmp_path):
    """A link that is changed all the time gives the allowed directory's content or a refusal, nothing else."""
    for name in ("allowed", "closed", "at"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    place.policy = f"[[allow]]\ntargets = ['{tmp_path}/allowed', 'dir:{tmp_path}/allowed']\n"
    script = (
        "import os, sys\n"
        "from cntr.cli import main, mounted\n"
        "from cntr.linux import opened\n"
        "real = opened.place_of\n"
        "def turning(fd):\n"
        "    found = real(fd)\n"
        "    os.unlink('link'); os.symlink('closed', 'link')\n"
        "    return found\n"
        "opened.place_of = turning\n"
        "os.symlink('allowed', 'link')\n"
        "status = main.run(['mount', 'link', 'at'])\n"
        "print(status, open('at/file').read())\n"
        "os.system('umount at')\n"
    )
    done = busybox.run(prefix=place.prefix(), code=script, cwd=str(tmp_path))
    assert (done.stdout, done.stderr) == ("0 allowed\n", ""), done


def test_the_tools_of_a_session_are_a_target_too(place, container, tmp_path):
    """With an allowed container, the tools may not be another container's files, or a directory below a closed one."""
    os.chmod(tmp_path, 0o755)
    (tmp_path / "root/bin").mkdir(parents=True)
    shutil.copy(busybox.BUSYBOX, tmp_path / "root/bin/busybox")
    (tmp_path / "link").symlink_to("root")
    place.policy = f"[[allow]]\ntargets = ['pid:{container.pid}', 'dir:{tmp_path}/link', 'dir:./*']\n"
    command = ("--", "/bin/busybox", "true")
    for tools in (
        f"{tmp_path}/root",
        f"dir:{tmp_path}/root",
        f"{tmp_path}/link",
        "./root",
        f"/proc/{container.pid}/root",
    ):
        done = place.cntr("attach", str(container.pid), "--tools", tools, *command, cwd=str(tmp_path))
        assert "is not allowed for root" in busybox.one_line_and_hint(done), tools
    place.policy = place.policy.replace("/link", "/root")
    done = place.cntr("attach", str(container.pid), "--tools", "./link", *command, cwd=str(tmp_path))
    assert done.returncode == 0, done


MALLORY = 29_991


def test_a_share_is_the_callers_own(place, container, tmp_path):
    """Its owner's files are the session's user's: by /root:rw a container's root would be the machine's."""
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(path, 0o755)
    (tmp_path / "roots").write_text("secret\n")
    (tmp_path / "own").write_text("own\n")
    os.chown(tmp_path / "own", MALLORY, MALLORY)
    (tmp_path / "link").symlink_to("roots")
    place.policy = f"[[allow]]\ntargets = ['pid:{container.pid}']\n"
    place.setup = f"echo mallory:x:{MALLORY}:{MALLORY}::/nonexistent:/bin/sh >> /etc/passwd\n"
    mallory = {"SUDO_UID": str(MALLORY), "SUDO_GID": str(MALLORY), "SUDO_USER": "mallory"}
    for name in ("roots", "link"):
        share = ("--share", f"{tmp_path}/{name}", "--", "cat", f"{tmp_path}/roots")
        done = place.cntr("attach", str(container.pid), *share, env=mallory)
        assert "is not mallory's own" in busybox.one_line_and_hint(done), name
        assert place.cntr("attach", str(container.pid), *share).stdout == "secret\n"
    done = place.cntr(
        "attach", str(container.pid), "--share", f"{tmp_path}/own", "--", "cat", f"{tmp_path}/own", env=mallory
    )
    assert done.stdout == "own\n", done


def test_a_copy_has_its_callers_rights_on_this_machine(place, container, tmp_path):
    """Otherwise who is allowed a container could read and replace any file of this machine."""
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(path, 0o755)
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "own").mkdir()
    os.chown(tmp_path / "own", MALLORY, MALLORY)
    place.policy = f"[[allow]]\ntargets = ['pid:{container.pid}']\n"
    place.setup = f"echo mallory:x:{MALLORY}:{MALLORY}::/nonexistent:/bin/sh >> /etc/passwd\n"
    mallory = {"SUDO_UID": str(MALLORY), "SUDO_GID": str(MALLORY), "SUDO_USER": "mallory"}
    inside = f"{container.pid}:/stored"
    assert place.cntr("cp", str(tmp_path / "secret"), inside, env=mallory).returncode != 0
    assert place.cntr("cp", str(tmp_path / "secret"), inside).returncode == 0
    for destination, allowed in (("own/copy", True), ("copy", False)):
        done = place.cntr("cp", inside, str(tmp_path / destination), env=mallory)
        assert (done.returncode == 0) == allowed == (tmp_path / destination).exists(), done
    assert (tmp_path / "own" / "copy").stat().st_uid == MALLORY
    assert place.cntr("cp", inside, str(tmp_path / "copy")).returncode == 0


@pytest.mark.parametrize("what", ["command", "listen", "connect", "abstract"])
def test_a_forward_has_its_callers_rights_on_this_machine(place, container, tmp_path, what):
    """Its command, files that it makes, and sockets that know who connects."""
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(path, 0o755)
    place.policy = f"[[allow]]\ntargets = ['pid:{container.pid}']\n"
    place.setup = f"echo mallory:x:{MALLORY}:{MALLORY}::/nonexistent:/bin/sh >> /etc/passwd\n"
    mallory = {"SUDO_UID": str(MALLORY), "SUDO_GID": str(MALLORY), "SUDO_USER": "mallory"}
    pid = str(container.pid)
    if what == "command":
        script = 'id -u; id -g; id -G; echo "$HOME $USER"; grep Cap[PE] /proc/self/status'
        done = place.cntr("forward", pid, "0:80", "--", "sh", "-c", script, env=mallory)
        rows = done.stdout.split("\n")
        assert rows[:4] == [str(MALLORY)] * 3 + ["/nonexistent mallory"], done
        assert [row.split()[1] for row in rows[4:6]] == ["0" * 16] * 2
        assert place.cntr("forward", pid, "0:80", "--", "id", "-u").stdout == "0\n"
        return
    if what == "listen":
        done = place.cntr("forward", pid, f"{tmp_path}/s:80", "--", "true", env=mallory)
        assert "permission denied" in busybox.one_line_and_hint(done)
        (tmp_path / "own").mkdir()
        os.chown(tmp_path / "own", MALLORY, MALLORY)
        script = f"stat -c '%u %a' {tmp_path}/own/s"
        done = place.cntr("forward", pid, f"{tmp_path}/own/s:80", "--", "sh", "-c", script, env=mallory)
        assert done.stdout == f"{MALLORY} 600\n", done
        assert os.listdir(tmp_path / "own") == []
        return
    name = f"{tmp_path}/root.sock" if what == "connect" else f"@cntr-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.listen()
        if what == "connect":
            os.chmod(name, 0o600)
        listener.settimeout(15)
        command = [
            "nsenter",
            "-t",
            pid,
            "-n",
            "bash",
            "-c",
            "ip link set lo up; exec 3<>/dev/tcp/127.0.0.1/9876; cat <&3",
        ]
        line = ("forward", pid, "-R", f"9876:{name}", "--", "sleep", "30")
        process = subprocess.Popen(
            [*place.prefix(), *busybox.CNTR, *line],
            env={**os.environ, "PYTHONPATH": busybox.REPOSITORY, **mallory},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert "9876" in process.stderr.readline()
            client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            if what == "connect":
                assert "ermission denied" in process.stderr.readline()
            else:
                connection, _ = listener.accept()
                with connection:
                    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                assert int.from_bytes(peer[4:8], "little") == MALLORY
            client.wait(15)
        finally:
            process.terminate()
            process.wait(15)
            process.stderr.close()


@pytest.mark.parametrize(
    "by", [{"SUDO_UID": str(MALLORY)}, {"PKEXEC_UID": str(MALLORY)}, {"DOAS_USER": "mallory"}], ids=str
)
def test_other_peoples_sessions_and_recordings_take_a_rule(place, container, tmp_path, by):
    """Who is allowed a container may list and end their own sessions there, and replay their own files."""
    rules = f"[[allow]]\nusers = ['mallory']\ntargets = ['pid:{container.pid}']\n[[allow]]\nusers = ['root']\n"
    place.policy = rules
    place.setup = f"echo mallory:x:{MALLORY}:{MALLORY}::/nonexistent:/bin/sh >> /etc/passwd\n"
    record = tmp_path / "roots.cast"
    record.write_text('{"version": 2, "width": 80, "height": 24}\n[0.1, "o", "secret\\r\\n"]\n')
    record.chmod(0o600)
    assert "secret" not in place.cntr("replay", str(record), env=by).stdout
    assert "secret" in place.cntr("replay", str(record)).stdout
    if "SUDO_UID" not in by:
        assert place.cntr("forward", str(container.pid), "0:80", "--", "id", "-u", env=by).stdout == f"{MALLORY}\n"

    def rows(**more: object) -> list[str]:
        found = json.loads(place.cntr("sessions", "--json", **more).stdout)
        return [row["id"] for row in found if row["container"] == f"pid:{container.pid}"]

    environment = {**os.environ, "PYTHONPATH": busybox.REPOSITORY}
    command = [*place.prefix(), *busybox.CNTR, "attach", str(container.pid), "--", "sh", "-c", "echo up; exec sleep 60"]
    for extra, theirs in (({}, False), (by, "SUDO_UID" in by)):
        with subprocess.Popen(command, env={**environment, **extra}, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout.readline() == b"up\n"
                (id,) = rows()
                assert rows(env=by) == ([id] if theirs else [])
                done = place.cntr("sessions", "end", id, env=by)
                assert (done.returncode == 0) == theirs, done
                place.policy = f"{rules}[[allow]]\nusers = ['mallory']\ncommands = ['sessions']\n"
                assert theirs or rows(env=by) == [id]
                place.policy = rules
            finally:
                process.terminate()


def test_slim_runs_whatever_it_is_told_and_has_to_be_allowed_by_name(place, tmp_path):
    words = ("slim", f"dir:{tmp_path}/none", "--", "true")
    for rule, allowed in (
        ("targets = ['docker:*']", False),
        ("users = ['root']", False),
        ("commands = ['slim']\ntargets = ['docker:*']", False),
        ("commands = ['slim']", True),
    ):
        place.policy = f"[[allow]]\n{rule}\n"
        assert ("slim is not allowed" in place.cntr(*words).stderr) != allowed, rule


def test_other_machines_take_roots_keys_and_files_and_have_to_be_allowed_by_name(place, tmp_path):
    """`sudo cntr --host MINE cp web:/x /etc/x` writes here, and kubectl runs commands from a kubeconfig; rules about
    containers prevent neither.
    """
    ran = tmp_path / "ran"
    for name in ("ssh", "kubectl"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {ran}\nexit 9\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CNTR_CACHE_DIR": str(tmp_path / "cache")}
    commands = (
        ("--host", "mine", "cp", "web:/x", str(tmp_path / "x")),
        ("--host=mine", "attach", "web"),
        ("ps", "--host", "mine"),
        ("--kubectl", "--kubeconfig", "/x", "pod"),
        ("attach", "docker:nobodys"),
    )
    for rule, allowed in (
        ("targets = ['docker:*']", False),
        ("users = ['root']", False),
        ("commands = ['--host', 'attach']", True),
    ):
        place.policy = f"[[allow]]\n{rule}\n"
        for words in commands:
            done = place.cntr(*words, env={**path, "DOCKER_HOST": "ssh://mine"})
            assert ("--host is not allowed" in done.stderr) != allowed, (rule, words, done)
            assert ran.exists() == allowed, (rule, words)
            ran.unlink(missing_ok=True)


def test_the_mark_of_a_far_command_is_removed_by_its_makers_rights():
    """Otherwise `sudo cntr --far FILE …` could remove any file of the machine."""
    alice = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        mark = pathlib.Path(place, "mark")
        mark.write_text("1")
        assert busybox.run("--far", str(mark), "--version", env=alice).returncode == 0
        assert mark.exists(), "root's"
        os.chown(place, 65534, 65534)
        assert busybox.run("--far", str(mark), "--version", env=alice).returncode == 0
        assert not mark.exists()


def test_a_users_container_is_none_of_those_that_roots_patterns_mean(tmp_path, monkeypatch):
    """A user's engine may call any of the user's own processes "web", and `-u 0` would then make the user root."""
    from cntr.engines import listing

    monkeypatch.setattr(policy.who, "login_uid", lambda: 0)
    own = policy_container("docker", "web", owner=1000)
    for text, allowed in (
        ("['docker:web*', '*:web', '*']", False),
        ("['1000/docker:*']", True),
        ("['*/docker:web']", True),
        ("['1001/docker:web']", False),
    ):
        found = rules(tmp_path, f"[[allow]]\ntargets = {text}\n")
        monkeypatch.setattr(listing, "running", lambda: ([own], []))
        for container in (own, policy_container("pid", str(os.getpid()))):
            try:
                found.check_target("exec", "docker:web", container)
            except Refused:
                assert not allowed or container is not own, (text, container.engine)
            else:
                assert allowed or (container is not own and "'*'" in text), (text, container.engine)
    monkeypatch.setattr(policy.who, "real_uid", lambda: 1000)
    rules(tmp_path, "[[allow]]\ntargets = ['docker:web']\n").check_target("exec", "", own)


# --- the whole command -------------------------------------------------------------------------------------------------


def test_a_reason_is_required_of_root_too_and_the_refusal_recorded(place, container, tmp_path):
    place.policy = f"[record]\nfile = '{tmp_path}/log'\n[session]\nreason = true\nforbid = ['--privileged']\n"
    os.chmod(tmp_path, 0o755)
    marker = tmp_path / "entered"
    with place.journal() as journal:
        command = ("--share", f"{tmp_path}:rw", "--", "touch", str(marker))
        refused = place.cntr("attach", str(container.pid), *command, env={"CNTR_CONF": "/dev/null"})
        assert "a reason is missing" in busybox.one_line_and_hint(refused)
        refused = place.cntr("attach", str(container.pid), "--reason", "r", "--privileged", *command)
        assert "--privileged is forbidden" in busybox.one_line_and_hint(refused)
        assert not marker.exists()
        done = place.cntr("attach", str(container.pid), "--reason", "r", *command)
        assert (done.returncode, marker.exists()) == (0, True), done
    assert [only(entry, "CNTR_EVENT_TYPE") for entry in journal.entries] == ["denied", "denied", "start", "end"]
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [entry["event.type"] for entry in log] == [["denied"], ["denied"], ["start"], ["end"]]
    assert log[0]["message"] == f"root: {container.pid}: attach refused: attach: a reason is missing"


@pytest.mark.parametrize("sink", ["journal", "file", "full", "audit"])
def test_no_record_no_session(place, container, tmp_path, sink):
    """If a required record can't be written, nothing is entered: status 125."""
    os.chmod(tmp_path, 0o755)
    marker = tmp_path / "entered"
    place.policy = {
        "journal": "[record]\nrequire = true\n",
        "file": f"[record]\nrequire = true\njournal = false\nfile = '{tmp_path}/none/log'\n",
        "full": "[record]\nrequire = true\njournal = false\nfile = '/run/full/log'\n",
        "audit": "[record]\nrequire = true\njournal = false\naudit = true\n",
    }[sink]
    if sink == "full":
        place.setup = (
            "mkdir -p /run/full; mount -t tmpfs -o size=4k,mode=755 t /run/full; head -c 4096 /dev/zero > /run/full/log"
        )
    with audit_lock() if sink == "audit" else contextlib.nullcontext():
        done = place.cntr("attach", str(container.pid), "--share", f"{tmp_path}:rw", "--", "touch", str(marker))
    message = busybox.one_line_and_hint(done)
    assert message.startswith("cntr: no record in ")
    assert message.endswith(": /etc/cntr.conf requires one")
    assert not marker.exists()
    if sink != "journal":
        place.policy = place.policy.replace("require = true\n", "")
        with audit_lock() if sink == "audit" else contextlib.nullcontext():
            done = place.cntr("attach", str(container.pid), "--", "true")
        assert done.returncode == 0
        assert "note: no record in " in done.stderr


@pytest.mark.parametrize("what", ["link", "group-writable", "unknown key"])
def test_nothing_is_done_by_a_policy_that_is_not_roots(place, container, what):
    place.policy = "" if what != "unknown key" else "[session]\nx = true\n"
    place.setup = {
        "link": "rm /etc/cntr.conf; ln -s /dev/null /etc/cntr.conf",
        "group-writable": "chmod g+w /etc/cntr.conf",
        "unknown key": ":",
    }[what]
    for command in (["attach", str(container.pid), "--", "true"], ["cp", f"{container.pid}:/app", "/dev/stdout"]):
        message = busybox.one_line_and_hint(place.cntr(*command))
        assert "/etc/cntr.conf" in message


def test_the_policy_looks_at_what_a_pid_is_in(place, container):
    place.policy = "[[allow]]\ntargets = ['docker:*']\n"
    assert "is not allowed for root" in busybox.one_line_and_hint(
        place.cntr("attach", str(container.pid), "--", "true")
    )
    place.policy = f"[[allow]]\ntargets = ['pid:{container.pid}']\n"
    assert place.cntr("attach", str(container.pid), "--", "true").returncode == 0


@pytest.mark.usefixtures("other_users")
def test_a_user_without_root_is_told_what_the_policy_says(place):
    place.policy = "[session]\nreason = true\n"
    code = "import os, sys\nos.setgid(1000); os.setuid(1000)\nfrom cntr.__main__ import main\nmain()"
    done = place.cntr("attach", str(os.getpid()), "--", "true", code=code)
    assert "a reason is missing" in busybox.one_line_and_hint(done)
    place.setup = "chmod 600 /etc/cntr.conf"
    done = place.cntr("attach", str(os.getpid()), "--", "true", code=code)
    assert "/etc/cntr.conf: Permission denied" in busybox.one_line_and_hint(done)


def test_doctor_says_where_records_go_and_what_is_wrong_with_the_policy(place):
    def rows():
        found = json.loads(place.cntr("doctor", "--json").stdout)
        return {row["feature"].split(" (")[0]: (row["state"], row["fix"]) for row in found}

    assert rows()["records of sessions"][0] == "nowhere"
    assert rows()["policy"] == ("none", "")
    place.policy = "[record]\nfile = '/var/log/x'\n"
    with place.journal():
        assert rows()["records of sessions"] == ("journald, /var/log/x", "")
    assert rows()["policy"] == ("yes", "")
    place.policy = "[x]\n"
    assert rows()["policy"][0] == "no"
    assert "line 1" in rows()["policy"][1]
