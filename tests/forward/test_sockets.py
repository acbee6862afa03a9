"""``attach -X -A --dbus --wayland --socket``: real programs of a session reach the caller's sockets, the container does not."""

from __future__ import annotations

import array
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cntr.attach import bus, x11
from testkit.container import SlimContainer
from testkit.waiting import wait_until
from tests.cli.run import cntr
from tests.forward.kit import ENVIRONMENT
from tests.nest.busybox import CNTR, BusyboxContainer, one_line_and_hint, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")
TRANSPORTS = ("mount", "fuse")
NOBODY = pwd.getpwnam("nobody")
PACKAGES = {
    "Xvfb": "xvfb",
    "xclock": "x11-apps",
    "xwd": "x11-apps",
    "ssh-agent": "openssh-client",
    "dbus-daemon": "dbus",
    "gdbus": "libglib2.0-bin",
    "busctl": "systemd",
    "gpg-agent": "gnupg",
    "weston": "weston",
    "wayland-info": "wayland-utils",
}


def needs(*programs: str) -> None:
    missing = sorted({PACKAGES[program] for program in programs if not shutil.which(program)})
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")


def session(pid: int, *words: str, env: dict[str, str] | None = None) -> str:
    """The output of a session, which must succeed."""
    done = run("attach", str(pid), *words, env=env, timeout=60)
    assert done.returncode == 0, done
    return done.stdout


@contextmanager
def daemon(*words: str, user: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A program that runs as USER inside the block, with its output on a pipe."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    process = subprocess.Popen([*become, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of user nobody's that everybody can enter."""
    with tempfile.TemporaryDirectory(prefix="cntr-place-") as path:
        os.chmod(path, 0o755)
        os.chown(path, NOBODY.pw_uid, -1)
        yield Path(path)


@contextmanager
def display(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An X server that requires its cookie."""
    needs("Xvfb", "xclock", "xwd")
    cookie, authority = os.urandom(16), tmp_path / "authority"
    read, write = os.pipe()
    # The server chooses the number, under which its cookie is found.
    authority.write_bytes(b"".join(x11.authority(number, cookie) for number in range(100)))
    words = f"Xvfb -noreset -displayfd {write} -auth {authority} -nolisten tcp -screen 0 300x200x24".split()
    process = subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            yield {"DISPLAY": f":{numbers.readline().strip()}.0", "XAUTHORITY": str(authority)}
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_window_of_a_sessions_program_is_on_the_callers_display(tmp_path, transport):
    with display(tmp_path) as env, SlimContainer("x") as container:
        before = picture(env)
        assert len(set(before)) == 1
        words = (
            "attach",
            str(container.pid),
            "-X",
            "--transport",
            transport,
            "--",
            "sh",
            "-c",
            "xclock & cat; kill $!",
        )
        showing = subprocess.Popen(
            [*CNTR, *words], env={**ENVIRONMENT, **env}, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: len(set(picture(env))) > 1 or showing.poll() is not None, "the clock", 50)
        finally:
            said = showing.communicate("", timeout=30)[1]
        assert showing.returncode == 0, said
        wait_until(lambda: picture(env) == before, "the clock's end")


def picture(env: dict[str, str]) -> list[bytes]:
    """The pixels of the display (XWDFile.h: the header's size, 25 words, then the colours)."""
    data = subprocess.run(
        ["xwd", "-root", "-silent"], env={**os.environ, **env}, capture_output=True, check=True
    ).stdout
    header, colours = int.from_bytes(data[:4], "big"), int.from_bytes(data[76:80], "big")
    pixels = data[header + 12 * colours :]
    return [pixels[at : at + 4] for at in range(0, len(pixels), 4)]


def test_the_sessions_cookie_is_its_own_and_no_name_of_the_display_can_be_listened_at(tmp_path):
    """X clients try the abstract name first. A program in the container that listens there could type into the
    session's windows.
    """
    script = "echo $DISPLAY; xauth list; grep -c /tmp/.X11-unix/X /proc/net/unix"
    with display(tmp_path) as env, SlimContainer("x") as container:
        squat = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0/tmp/.X11-unix/X10')"
        squat += "; s.listen(); print('up', flush=True); input()"
        words = ["nsenter", "-t", str(container.pid), "-n", "python3", "-c", squat]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
            assert squatter.stdout.readline() == "up\n"
            shown, cookie, _ = session(container.pid, "-X", "--", "sh", "-c", script, env=env).splitlines()
            assert shown == ":11.0"
            assert cookie.split()[-1] not in Path(env["XAUTHORITY"]).read_bytes().hex()
            attack = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0/tmp/.X11-unix/X11')"
            program = ["nsenter", "-t", str(container.pid), "-n", "python3", "-c", attack]
            going = subprocess.Popen(
                [*CNTR, "attach", str(container.pid), "-X", "--", "sh", "-c", "echo up; cat"],
                env={**ENVIRONMENT, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert going.stdout.readline() == "up\n"
            assert "Address already in use" in subprocess.run(program, capture_output=True, text=True).stderr
            connect = attack.replace("bind", "connect")
            done = subprocess.run([*program[:-1], connect], capture_output=True, text=True)
            assert "ConnectionRefusedError" in done.stderr
            going.communicate("")
            squatter.communicate("\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_ssh_agent_answers_whatever_the_sessions_uid(place, transport):
    needs("ssh-agent")
    agent, key = place / "agent.sock", place / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", key], check=True)
    with (
        daemon("ssh-agent", "-D", "-a", str(agent), user=NOBODY.pw_uid),
        BusyboxContainer("agent", uid=1000) as container,
    ):
        wait_until(agent.exists)
        env = {"SSH_AUTH_SOCK": str(agent), "SUDO_UID": str(NOBODY.pw_uid)}
        subprocess.run(["ssh-add", "-q", key], env={**os.environ, **env}, check=True)
        for user in ("0", "1000"):
            assert "mine" in session(
                container.pid, "-A", "-u", user, "--transport", transport, "--", "ssh-add", "-l", env=env
            )
        said = one_line_and_hint(run("attach", str(container.pid), "-A", "--", "true", env={**env, "SUDO_UID": "0"}))
        assert f"belongs to uid {NOBODY.pw_uid}" in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_session_bus_takes_the_sessions_programs_for_the_callers(place, transport):
    needs("dbus-daemon", "gdbus", "busctl")
    address = f"unix:path={place}/bus"
    words = ("dbus-daemon", "--session", "--nofork", "--print-address", f"--address={address}")
    with daemon(*words, user=NOBODY.pw_uid) as running, BusyboxContainer("bus") as container:
        assert running.stdout.readline().startswith("unix:")
        env = {"DBUS_SESSION_BUS_ADDRESS": address, "SUDO_UID": str(NOBODY.pw_uid)}
        gdbus = "gdbus call --session --dest org.freedesktop.DBus --object-path / --method org.freedesktop.DBus.GetId"
        dbus_send = "dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId"
        script = f"{gdbus} && busctl --user --no-pager list && {dbus_send}"
        for user in ("0", "1000"):
            said = session(
                container.pid, "--dbus", "-u", user, "--transport", transport, "--", "sh", "-c", script, env=env
            )
            assert "org.freedesktop.DBus" in said
            assert "method return" in said


def test_beside_a_container_that_may_trace_where_cntr_restarts(place):
    needs("ssh-agent")
    agent = place / "agent.sock"
    with daemon("ssh-agent", "-D", "-a", str(agent)), SlimContainer("traces", capabilities=-1) as container:
        wait_until(agent.exists)
        done = run("attach", str(container.pid), "-A", "--", "ssh-add", "-l", env={"SSH_AUTH_SOCK": str(agent)})
        assert (done.returncode, done.stdout) == (1, "The agent has no identities.\n"), done


def test_an_owner_without_root_brings_their_own(place):
    """The session's root is the caller, as the container's user namespace is entered before a socket is brought."""
    needs("dbus-daemon", "gdbus")
    user = NOBODY.pw_uid
    address = f"unix:path={place}/bus"
    words = ("dbus-daemon", "--session", "--nofork", "--print-address", f"--address={address}")
    with daemon(*words, user=user) as running, daemon("unshare", "-Urnm", "sleep", "100", user=user) as container:
        assert running.stdout.readline().startswith("unix:")
        wait_until(lambda: "sleep" in Path(f"/proc/{container.pid}/comm").read_text())
        gdbus = "gdbus call --session --dest org.freedesktop.DBus --object-path / --method org.freedesktop.DBus.GetId"
        words = ("attach", f"pid:{container.pid}", "--dbus", "--", "sh", "-c", f"id -u; {gdbus}")
        done = cntr(*words, user=user, DBUS_SESSION_BUS_ADDRESS=address)
        assert (done.returncode, done.stdout[:4]) == (0, "0\n('"), done


def test_gpg_finds_its_agent(tmp_path):
    needs("gpg-agent")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    with BusyboxContainer("gpg") as container, daemon("gpg-agent", "--homedir", str(home), "--daemon", "sleep", "100"):
        agent = subprocess.run(
            ["gpgconf", "--homedir", str(home), "--list-dirs", "agent-socket"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        wait_until(lambda: os.path.exists(agent))
        words = ("--socket", f"{agent}:/run/user/0/gnupg/S.gpg-agent")
        said = session(container.pid, *words, "--", "gpg-connect-agent", "--no-autostart", "GETINFO version", "/bye")
        assert said.splitlines()[-1] == "OK"
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)


@contextmanager
def compositor(directory: Path) -> Iterator[Path]:
    """The socket of a Wayland compositor without a screen, run by nobody."""
    needs("weston", "wayland-info")
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, NOBODY.pw_uid, -1)
    version = subprocess.run(["weston", "--version"], capture_output=True, text=True).stdout.split()[-1]
    renderer = "--use-pixman" if int(version.split(".")[0]) < 13 else "--renderer=pixman"
    still = ("animation", "close-animation", "startup-animation", "focus-animation", "panel-position")
    settings = "".join(f"{key}=none\n" for key in still)
    (directory / "weston.ini").write_text(f"[shell]\nbackground-color=0xff002244\n{settings}[input-method]\npath=\n")
    words = f"weston --backend=headless-backend.so {renderer} --socket=wayland-7 --config={directory}/weston.ini"
    words += f" --idle-time=0 --debug --width=320 --height=240 --log={runtime}/log"
    with daemon("env", f"XDG_RUNTIME_DIR={runtime}", *words.split(), user=NOBODY.pw_uid) as running:
        place = runtime / "wayland-7"
        wait_until(lambda: place.exists() or running.poll() is not None, "the compositor")
        yield place


def screen(place: Path, directory: Path) -> bytes:
    """A picture of the compositor's screen, taken by its own screenshooter."""
    directory.mkdir()
    env = {**os.environ, "XDG_RUNTIME_DIR": str(place.parent), "WAYLAND_DISPLAY": str(place)}
    subprocess.run(["weston-screenshooter"], cwd=directory, env=env, check=True, capture_output=True)
    (picture,) = directory.iterdir()
    return picture.read_bytes()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_window_of_a_sessions_program_is_on_the_callers_compositor(place, transport):
    """Its pixels are in a memfd that the client has passed."""
    with compositor(place) as display, SlimContainer("wayland") as container:
        numbers = iter(range(1000))

        def pictures() -> int:
            """How many of three pictures differ: only this window moves, and it always does."""
            return len({screen(display, place / str(next(numbers))) for _ in range(3)})

        wait_until(lambda: pictures() == 1, "the background")
        env = {"WAYLAND_DISPLAY": str(display), "SUDO_UID": str(NOBODY.pw_uid)}
        words = ("--wayland", "--transport", transport, "--")
        assert "interface: 'wl_shm'" in session(container.pid, *words, "wayland-info", env=env)
        program = "weston-simple-shm & read line; kill $!"
        showing = subprocess.Popen(
            [*CNTR, "attach", str(container.pid), *words, "sh", "-c", program],
            env={**ENVIRONMENT, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: pictures() == 3 or showing.poll() is not None, "a window")
        finally:
            said = showing.communicate("\n", timeout=30)[1]
        assert showing.returncode in (0, 128 + 15), said
        wait_until(lambda: pictures() == 1, "the window's end")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_open_files_go_along_both_ways(tmp_path, transport):
    """Wayland passes buffers and keymaps this way."""
    place = str(tmp_path / "wayland-7")
    (tmp_path / "given").write_text("the server's")
    client = (
        "import array, os, socket\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['XDG_RUNTIME_DIR'] + '/' + os.environ['WAYLAND_DISPLAY'])\n"
        "fd = os.memfd_create('buffer'); os.write(fd, b'the clients')\n"
        "s.sendmsg([b'take'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\n"
        "d, f, _, _ = socket.recv_fds(s, 100, 4); print(d, os.pread(f[0], 100, 0))"
    )
    took = []

    def serve(listener: socket.socket) -> None:
        connection = listener.accept()[0]
        data, fds, _, _ = socket.recv_fds(connection, 100, 4)
        took.append((data, os.pread(fds[0], 100, 0)))
        given = os.open(tmp_path / "given", os.O_RDONLY)
        connection.sendmsg([b"here"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given]))])
        for fd in (given, *fds):
            os.close(fd)
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener, BusyboxContainer("wayland") as container:
        listener.bind(place)
        listener.listen()
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        env = {"WAYLAND_DISPLAY": place}
        words = ("--wayland", "--transport", transport, "--", "python3", "-c", client)
        assert session(container.pid, *words, env=env) == "b'here' b\"the server's\"\n"
        serving.join()
    assert took == [(b"take", b"the clients")]


def test_a_server_that_belongs_to_somebody_else_is_not_connected_to(tmp_path):
    """Its owner was checked by name; who listens is only known once it accepts."""
    place = str(tmp_path / "some.sock")
    with BusyboxContainer("other") as container, socket.socket(socket.AF_UNIX) as listener:
        pid = os.fork()
        if not pid:
            os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)
            listener.bind(f"\0{place}")
            listener.listen()
            signal.pause()
        try:
            wait_until(lambda: f"@{place}" in Path("/proc/net/unix").read_text())
            env = {"DBUS_SESSION_BUS_ADDRESS": f"unix:abstract={place}"}
            script = (
                "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/cntr/bus'); print(s.recv(9))"
            )
            assert session(container.pid, "--dbus", "--", "python3", "-c", script, env=env) == "b''\n"
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_what_cannot_be_brought_in_is_reported(tmp_path):
    place = str(tmp_path / "file")
    Path(place).write_text("")
    cases = {
        ("-X",): {"DISPLAY": ""},
        ("--x11",): {"DISPLAY": "other:0"},
        ("-A",): {"SSH_AUTH_SOCK": ""},
        ("--agent",): {"SSH_AUTH_SOCK": "/none"},
        ("--dbus",): {"DBUS_SESSION_BUS_ADDRESS": "tcp:host=127.0.0.1"},
        ("--wayland",): {"WAYLAND_DISPLAY": "/none"},
        ("--socket", place): {},
        ("--socket", "/none"): {},
        ("--socket", f"{place}:/etc/x"): {},
    }
    with SlimContainer("said") as container:
        for words, env in cases.items():
            one_line_and_hint(run("attach", str(container.pid), *words, "--", "true", env=env))
        done = run("attach", str(container.pid), "-A", "--tools", "host:all", "--", "true", env=env)
        assert "go with the tools view" in done.stderr


def test_of_the_sessions_sockets_the_container_sees_nothing(tmp_path):
    place = str(tmp_path / "some.sock")
    with socket.socket(socket.AF_UNIX) as listener, BusyboxContainer("seen") as container:
        listener.bind(place)
        listener.listen()
        words = ["attach", str(container.pid), "--socket", f"{place}:/run/some.sock", "--", "sh", "-c", "echo up; cat"]
        with subprocess.Popen(
            [*CNTR, *words], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as going:
            assert going.stdout.readline() == "up\n"
            prowl = "for p in /proc/[0-9]*; do ls $p/root/run/some.sock $p/cwd/run/some.sock; done 2>/dev/null; ls /run"
            assert "some.sock" not in container.exec("--", "sh", "-c", prowl).stdout
            assert place not in container.exec("--", "cat", "/proc/net/unix").stdout
            helper = _child_named(going.pid, "cntr-sockets")
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{helper}/status").read_text().splitlines())
            assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
            for kind in os.listdir("/proc/self/ns"):
                assert os.stat(f"/proc/{helper}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino
            going.communicate("")
        assert not os.path.exists(f"/proc/{helper}")


def _child_named(parent: int, name: str) -> int:
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == name:
            return int(child)
    raise AssertionError(f"no {name}")


# --- what is parsed ---------------------------------------------------------------------------------------------------


def test_an_xauthority_file_gives_the_one_cookie():
    def entry(family: int, *words: bytes) -> bytes:
        return family.to_bytes(2, "big") + b"".join(len(word).to_bytes(2, "big") + word for word in words)

    name, other, mine = x11.COOKIE_NAME, b"o" * 16, b"m" * 16
    others = entry(256, b"here", b"1", name, other) + entry(0, b"\x7f\0\0\1", b"0", name, other)
    others += entry(256, b"here", b"0", b"XDM-AUTHORIZATION-1", other) + entry(256, b"here", b"0", name, b"short")
    assert x11.cookie(others, 0, "here") == b""
    renamed = entry(256, b"before", b"0", name, other)
    wild = entry(65535, b"", b"", name, other)
    assert x11.cookie(others + renamed + wild + entry(256, b"here", b"0", name, mine), 0, "here") == mine
    assert x11.cookie(renamed, 0, "here") == other
    assert x11.cookie(x11.authority(7, mine), 7, "anything") == mine
    whole = others + entry(256, b"here", b"0", name, mine)
    for cut in range(len(whole)):
        assert x11.cookie(whole[:cut], 0, "here") == b""
    assert [x11.display(text) for text in (":0", "unix:3.1", "localhost:10.0")] == [
        ("/tmp/.X11-unix/X0", 0, 0),
        ("/tmp/.X11-unix/X3", 3, 1),
        ("", 10, 0),
    ]
    for text in ("", ":", "0", "other:0", ":x", ":0.x", ":../../x", "/tmp/x:0", ":999999"):
        with pytest.raises(ValueError):  # noqa: PT011
            x11.display(text)


def test_a_clients_setup_gets_the_real_cookie_and_only_with_the_sessions_own():
    ours, real = b"o" * 16, b"r" * 16

    def setup(order: str, cookie: bytes, name: bytes = x11.COOKIE_NAME) -> bytes:
        big = "big" if order == "B" else "little"
        head = order.encode() + b"\0" + b"".join(n.to_bytes(2, big) for n in (11, 0, len(name), len(cookie))) + b"\0\0"
        return head + name.ljust(len(name) + 3 & ~3, b"\0") + cookie

    for order in "Bl":
        opening = x11.Setup(ours, real)
        said = b"".join(opening.feed(bytes([byte])) for byte in setup(order, ours)) + opening.feed(b"")
        assert said[:48] == setup(order, real)
        assert opening.done
        assert x11.Setup(ours, b"").feed(setup(order, ours) + b"more") == setup(order, b"", b"") + b"more"
        for wrong in (setup(order, real), setup(order, ours, b"OTHER"), setup("x", ours), b"l\0" + b"\xff" * 10):
            with pytest.raises(ValueError):  # noqa: PT011
                x11.Setup(ours, real).feed(wrong)


def test_a_bus_client_calls_itself_the_caller():
    def told(*parts: bytes) -> bytes:
        opening = bus.Authentication(1000)
        return b"".join(opening.feed(part) for part in parts)

    mine = b"31303030"  # "1000", each digit in hexadecimal
    assert told(b"\0", b"AUTH EXTERNAL 30\r\n", b"BEGIN\r\nl\1") == b"\0AUTH EXTERNAL " + mine + b"\r\nBEGIN\r\nl\1"
    assert told(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n") == b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
    assert told(b"\0AUTH EXTERNAL\r\nDATA 30\r\n") == b"\0AUTH EXTERNAL\r\nDATA " + mine + b"\r\n"
    assert told(b"\0AUTH\r\nAUTH ANONYMOUS 30\r\nDATA 31\r\n") == b"\0AUTH\r\nAUTH ANONYMOUS 30\r\nDATA 31\r\n"
    assert told(b"\0BEGIN\r\nAUTH EXTERNAL 30\r\n") == b"\0BEGIN\r\nAUTH EXTERNAL 30\r\n"
    for wrong in (b"x", b"\0" + b"A" * (1 << 15)):
        with pytest.raises(ValueError):  # noqa: PT011
            told(wrong)
    assert bus.path("tcp:host=x;unix:abstract=/tmp/a%20b,guid=1") == "@/tmp/a b"
    assert bus.path("unix:path=/run/bus") == "/run/bus"
    assert bus.path("unix:tmpdir=/tmp") == bus.path("") == ""
