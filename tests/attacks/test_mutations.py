"""Each defence is disabled once, and its attack must then succeed: a check that no mutation makes fail proves nothing.

A mutation is a line of Python that patches one function or constant of cntr before it runs, also in the interpreter
that ``exec`` restarts.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.attacks import kit, test_a1_descriptors, test_a12_ptrace, test_b1_exec, test_c2_images
from tests.nest.busybox import REPOSITORY
from tests.nest.test_exec_inside import INSIDE

START = "from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
# The second interpreter's code is a template, to which the mutation is prepended.
AGAIN = "import cntr.attach.readonly_interpreter as again; again.CODE = again.CODE.replace('from cntr.__main__', {undone!r}.replace('{{', '{{{{').replace('}}', '}}}}') + '; from cntr.__main__')"


def mutated(undone: str, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run cntr WORDS with a defence disabled."""
    code = f"import sys; {undone}; {AGAIN.format(undone=undone)}; {START}" if undone else f"import sys; {START}"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": REPOSITORY, "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        **{"input": "", **more},  # type: ignore[call-overload]
    )


class Scene:
    """What an attack needs: fixtures, and cntr with or without the defence."""

    def __init__(self, undone: str, accomplice: str, canary: kit.Canary, place) -> None:
        self.undone, self.accomplice, self.canary, self.place = undone, accomplice, canary, place

    def hostile(self, *argv: str, **more: object) -> kit.Hostile:
        return kit.hostile(self.place, self.accomplice, *argv, **more)

    def cntr(self, *words: str, **more: object) -> str:
        done = mutated(self.undone, *words, **more)
        return done.stdout + done.stderr

    def bash(self, container: kit.Hostile, script: str, *flags: str, **more: object) -> str:
        return self.cntr("attach", str(container.pid), *flags, "--", "/bin/bash", "-c", script, **more)


def descriptors(scene: Scene) -> bool:
    paths = test_a1_descriptors.links("/proc/self/fd/{}", str(scene.canary.directory))
    with scene.hostile(links=paths, environment=test_a1_descriptors.along(paths)) as container:
        return kit.PROOF in scene.cntr("exec", str(container.pid), "--", "proof")


def prompt(scene: Scene) -> bool:
    with scene.hostile(
        files={"/etc/passwd": "$(echo canary name >>/var/lib/cntr/loot):x:0:0::/:/bin/sh\n"}
    ) as container:
        scene.cntr("attach", str(container.pid), "--", "/bin/bash", "-i", input="PS1='\\u@\\h '\n:\nexit\n")
        return bool(container.proofs(scene.canary.secret))


def escapes(scene: Scene) -> bool:
    with scene.hostile(files={"/etc/hosts": "127.0.0.1 \x1b]0;owned\x07\n"}) as container:
        return "\x1b" in scene.bash(container, "cat /etc/hosts")


def devices(scene: Scene) -> bool:
    with scene.hostile() as container:
        container.inside("/dev/zero").unlink()
        container.inside("/dev/zero").write_text(scene.canary.secret)
        return scene.canary.secret in scene.bash(container, "head -c 32 /dev/zero")


def variables(scene: Scene) -> bool:
    with scene.hostile(
        environment={"BASH_ENV": "/var/lib/cntr/trap"}, files={"/trap": "echo canary >>/var/lib/cntr/loot\n"}
    ) as container:
        scene.bash(container, "true")
        return bool(container.proofs(scene.canary.secret))


def handles(scene: Scene) -> bool:
    closed = scene.canary.directory / "canary.open" / "closed"
    closed.mkdir(mode=0o700)
    try:
        (closed / "file").write_text(scene.canary.secret)
        number = (closed / "file").stat().st_ino
        with scene.hostile(capabilities=test_a12_ptrace.PTRACE | 1 << 2) as container:
            words = ("python3", "-c", test_a12_ptrace.BY_HANDLE, str(number))
            return scene.canary.secret in scene.cntr("attach", str(container.pid), "--", *words)
    finally:
        shutil.rmtree(closed)


def kernel_settings(scene: Scene) -> bool:
    with scene.hostile(mount_proc=False) as container:
        return "written sys/kernel" in scene.cntr(
            "attach", str(container.pid), "--", "python3", "-c", test_a12_ptrace.PROC
        )


def host_name(scene: Scene) -> bool:
    with scene.hostile(as_root=lambda: socket.sethostname("\x1b]0;t\x07")) as container:
        return "\x1b" in scene.cntr("attach", str(container.pid), "--", "uname", "-n")


def root_files(scene: Scene) -> bool:
    with scene.hostile() as container:
        return scene.canary.secret in scene.bash(container, f"cat {scene.canary.path}")


def written_files(scene: Scene) -> bool:
    with scene.hostile() as container:
        scene.bash(
            container, f"mount -o remount,rw / 2>/dev/null; touch {scene.canary.file('open')}/new && echo written"
        )
    new = os.path.join(scene.canary.file("open"), "new")
    if os.path.exists(new):
        os.unlink(new)
        return True
    return False


def sockets(scene: Scene) -> bool:
    from tests.attacks.test_b9_host import DIAL, listening

    path = str(scene.canary.directory / "daemon.sock")
    unix = listening(path, 0o666)
    try:
        with scene.hostile() as container:
            return "talked to" in scene.bash(container, f'python3 -c "{DIAL}" {path}')
    finally:
        unix.close()
        os.unlink(path)


def doors(scene: Scene) -> bool:
    """The container can read the session's memory, or a file through its root."""
    with scene.hostile("hunt", "l", scene.canary.file("public"), scene.canary.secret, "same") as container:
        kit.await_ready(container)
        for _ in range(3):
            scene.bash(container, "sleep 0.15")
        return any(line.startswith(("memory", "canary")) for line in container.loot)


def dropped(scene: Scene) -> bool:
    """The same with a tool that drops its capabilities."""
    with scene.hostile("hunt", "l", scene.canary.file("public"), scene.canary.secret, "same") as container:
        kit.await_ready(container)
        for _ in range(3):
            scene.bash(container, "setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all sleep 0.2")
        return any(line.startswith(("memory", "canary")) for line in container.loot)


def tickets(scene: Scene) -> bool:
    with scene.hostile() as container:
        ticket = test_b1_exec.with_a_ticket("ticket", scene.canary.secret)
        return scene.canary.secret in scene.cntr(
            "exec", str(container.pid), "--", "/accomplice", "keys", "ticket", preexec_fn=ticket
        )


def core_limit(scene: Scene) -> bool:
    with scene.hostile() as container:
        return scene.bash(container, "ulimit -Hc").strip() != "0"


def filters(scene: Scene) -> bool:
    with test_b1_exec.filtered(scene.place, scene.accomplice, ((test_b1_exec.SYS_GETCPU, 77),)) as container:
        return "77" not in scene.cntr(
            "exec", str(container.pid), "--", "/accomplice", "call", str(test_b1_exec.SYS_GETCPU)
        )


def number(scene: Scene) -> bool:
    with scene.hostile(files={"/etc/passwd": "1000:x:0:0::/:/bin/sh\n"}) as container:
        return scene.cntr("exec", str(container.pid), "--user", "1000", "--", "id", "-u").strip() == "0"


def groups(scene: Scene) -> bool:
    with scene.hostile(
        files={"/etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", "/etc/group": "shadow:x:42:app\n"}
    ) as container:
        return scene.canary.secret in scene.bash(container, f"cat {scene.canary.file('group')}", "--user", "app")


def deputy(scene: Scene) -> bool:
    """The host's root writes to it through a session's fd; the value is the current one."""
    path = "/proc/sys/kernel/kptr_restrict"
    with scene.hostile() as container:
        line = f'v=$(cat {path}); {INSIDE} -- /bin/sh -c "echo $v" >{path} </dev/null && echo written'
        return "written" in scene.bash(container, line)


def memory(scene: Scene) -> bool:
    token = f"TOKEN-{scene.canary.secret[:16]}"
    with (
        scene.hostile("hunt", "M", scene.canary.path, token, "same", capabilities=test_a12_ptrace.PTRACE) as container,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_SECRET_ACCESS_KEY", token)
        kit.await_ready(container)
        for _ in range(2):
            scene.bash(container, "sleep 0.3")
        return any(line.startswith("memory holds") for line in container.loot)


def streams(scene: Scene) -> bool:
    """The program opens a file given as stdin for writing."""
    file = scene.place / "file"
    file.write_text("caller's\n")
    with scene.hostile() as container, open(file) as opened:
        scene.cntr("exec", str(container.pid), "--", "/accomplice", "streams", input=None, stdin=opened)
    return file.read_text() != "caller's\n"


def orphans(scene: Scene) -> bool:
    """If the container kills the reaper, a process outlives the session as a child of the container's init."""
    with scene.hostile() as container:
        scene.bash(container, "setsid sleep 600 >/dev/null 2>&1 </dev/null & sleep 0.2; kill -9 $PPID; sleep 5")
        left = [
            pid
            for pid in os.listdir("/proc")
            if pid.isdecimal() and _is(pid, b"sleep\x00600") and _same_pids(pid, container.pid)
        ]
        for pid in left:
            os.kill(int(pid), 9)
        return bool(left)


def displays(scene: Scene) -> bool:
    """A program of the container listens where X clients of the session connect first."""
    squat = (
        "import socket\nheld = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n"
        "for number, one in enumerate(held, 10): one.bind(f'\\0/tmp/.X11-unix/X{number}'); one.listen()\n"
        "print('up', flush=True); input()"
    )
    client = (
        "import os, socket; number = os.environ['DISPLAY'][1:].partition('.')[0]; "
        "socket.socket(socket.AF_UNIX).connect('\\0/tmp/.X11-unix/X' + number); print('typed into')"
    )
    with scene.hostile() as container, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", "localhost:77")
        words = ["nsenter", "-t", str(container.pid), "-n", sys.executable, "-c", squat]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
            assert squatter.stdout.readline() == "up\n"
            said = scene.cntr("attach", str(container.pid), "-X", "--", "python3", "-c", client)
            squatter.communicate("\n")
    return "typed into" in said


def linked_socket(scene: Scene) -> bool:
    """A link in the container leads to a socket of the host, where a forward should find one of the container's."""
    path = str(scene.place / "outside.sock")
    with socket.socket(socket.AF_UNIX) as listener, scene.hostile(links={"/app.sock": path}) as container:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            """Answered, so that the forward ends."""
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            connection.sendall(b"from the host")
            connection.close()

        serving = threading.Thread(target=serve)
        serving.start()
        said = scene.cntr("forward", str(container.pid), "-", "/app.sock")
        listener.shutdown(socket.SHUT_RDWR)  # ends the accept
        serving.join()
    return "from the host" in said


def _is(pid: str, line: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return line in file.read()  # it may still be setsid
    except OSError:
        return False


def _same_pids(pid: str, other: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{other}/ns/pid")
    except OSError:
        return False


# On an idmapped mount nobody can write or connect, whatever the mode, so the defence behind it only shows without one.
OWNED = (
    "import cntr.attach.view as m; "
    "m.Part.protect = lambda self, *fds: (m.syscalls.mount_setattr(self.tree_fd, '', recursive=False, attr_set=m.SAFE), setattr(self, 'how', 'idmapped'))[0]"
)


def image_keys(scene: Scene) -> bool:
    kit.need("runc")
    with test_c2_images.users_key(scene.canary.secret):
        root = test_c2_images.made_image(scene.accomplice, scene.place)
        return scene.canary.secret in scene.cntr(*test_c2_images.words_of(root, "/bin/sh /look"))


def copied_settings(scene: Scene) -> bool:
    with scene.hostile() as container:
        scene.cntr("cp", f"pid:{container.pid}:/proc/sys/kernel/hostname", f"{scene.place}/name")
        with open(f"{scene.place}/name") as file:
            return file.read().strip() == socket.gethostname()


# defence → (mutation, attack)
DEFENCES: dict[str, tuple[str, Callable[[Scene], bool]]] = {
    "every fd is closed before a path is followed": (
        "import cntr.attach.launcher as m; m.syscalls.close_all_but = lambda *kept: None",
        descriptors,
    ),
    "names are safe ones": ("import cntr.attach.etc_files as m; m.safe_name = lambda name: True", prompt),
    "copies hold no escapes": ("import cntr.attach.etc_files as m; m.copied = lambda name, data: data", escapes),
    "/dev is the session's own": (
        "import cntr.attach.nest as m; old = m.Nest.graft_kernel_filesystems; "
        "m.Nest.graft_kernel_filesystems = lambda self: (old(self), self._graft_directory('dev', 0x01021994))[0]",
        devices,
    ),
    "the environment is an allow-list": (
        "import cntr.attach.environment as m; old = m.add; "
        "m.add = lambda result, settings, container: (old(result, settings, container), result.update(container))[0]",
        variables,
    ),
    "a file has no handle": ("import cntr.attach.guard as m; m._around_the_view = lambda *all: []", handles),
    "a new /proc is as an engine makes it": (
        "import cntr.attach.nest as m; m.Nest._restrict_proc = lambda self: None",
        kernel_settings,
    ),
    "a host name is a name": (
        "import cntr.attach.launcher as m; m.Launcher._check_hostname = lambda self: None",
        host_name,
    ),
    "files belong to nobody": (OWNED, root_files),
    "the view is read-only": (f"{OWNED}; m.SAFE &= ~m.syscalls.MOUNT_ATTR_RDONLY", written_files),
    "nobody connects to sockets": (OWNED, sockets),
    "the session has a capability more than the container": (
        "import cntr.attach.identity as m; m.CAP_SYS_PTRACE = 0",
        doors,
    ),
    "no tool loses that capability": ("import cntr.attach.guard as m; m.install = lambda **all: None", dropped),
    "the session keyring is a new one": (
        "import cntr.attach.identity as m; m.process.join_new_session_keyring = lambda: None",
        tickets,
    ),
    "no core files": (
        "import cntr.attach.limits as m; old = m.of_session; m.of_session = lambda theirs, core_files: old(theirs, core_files=True)",
        core_limit,
    ),
    "exec has the container's filters": ("import cntr.attach.tracers as m; m.filters_of = lambda *all: []", filters),
    "a number is a number": (
        "import cntr.attach.identity as m, builtins; old = m.procfs.passwd_entry; "
        "m.procfs.passwd_entry = lambda text, user: next((old(text, line.split(':')[2]) for line in text.splitlines() if line.startswith(user + ':')), old(text, user))",
        number,
    ),
    "groups of the container open nothing": (
        "import cntr.attach.identity as m; old = m.user_of; "
        f"m.user_of = lambda target, wanted, own_root=False: old(target, wanted, own_root=True); {OWNED}",
        groups,
    ),
    "streams are pipes of our own": (
        "import cntr.attach.stdio as m; m.kind_of = lambda fd: m.PIPE; old = m.Stdio.__init__; "
        "m.Stdio.__init__ = lambda self, slave, owner, foreign: old(self, slave, owner, foreign=False)",
        streams,
    ),
    "what is left is found by its mount namespace": (
        "import cntr.attach.remains as m; m.end = lambda *all: 0; m.orphans = m.descendants = lambda *all: []",
        orphans,
    ),
    "a file of the kernel's is not moved by root": (
        "import cntr.attach.exec_handler as m; m._may_be_moved = lambda fd, nest: True",
        deputy,
    ),
    "the display's abstract name is nobody's": (
        "import cntr.attach.user_sockets as m; m.SessionSockets._free_display = lambda self: 10",
        displays,
    ),
    "a path of the container's is resolved below its root": (
        "import os, cntr.forward.dialer as m; m.syscalls.openat2 = lambda fd, path, flags, resolve, mode=0: os.open(path, flags, dir_fd=fd)",
        linked_socket,
    ),
    "an image's program has an engine's filter": (
        "import cntr.images.profile as m; m.for_runtimes = lambda capabilities: None",
        image_keys,
    ),
    "a copy has the container's settings of the kernel": (
        "import cntr.cp.copy as m; old = m.namespaces.join; "
        "m.namespaces.join = lambda found, *names: old(found, *({*names} - {'net', 'ipc', 'uts'}))",
        copied_settings,
    ),
    "no variable of the caller's stays in memory": (
        "import cntr.attach.environment as m, os; m.of_caller = lambda settings: dict(os.environ)",
        memory,
    ),
}


@pytest.fixture
def scene(accomplice, canary, place):
    return Scene("", accomplice, canary, place)


@pytest.mark.parametrize("name", DEFENCES)
def test_without_its_defence_the_attack_succeeds(scene, name):
    scene.undone, attack = DEFENCES[name]
    assert attack(scene), f"{attack.__name__} still fails without this defence: {name}"


@pytest.mark.parametrize("name", DEFENCES)
def test_with_it_the_same_attack_fails(scene, name):
    assert not DEFENCES[name][1](scene)
