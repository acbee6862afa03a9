"""``cntr exec`` runs a container's own program, which may be hostile: it must get no access to anything of the host's."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import time

import pytest

from cntr.images import elf
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer
from tests.nest.test_hostile import visits, workspace
from tests.nest.tty import Terminal

PLAIN = "import sys; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
UNPROTECTED = (
    "import sys, cntr.attach.readonly_interpreter; cntr.attach.readonly_interpreter.from_read_only_copy = lambda line: None; "
    "from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
SEALED = """
import sys, cntr.attach.readonly_interpreter
def refuse(path): raise PermissionError(1, "no mount")
cntr.attach.readonly_interpreter._read_only_mount = refuse
from cntr.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
# The accomplice can't trace a session. Without the capability that prevents it, only the second line of defence is
# left.
OPEN_TO_THE_ACCOMPLICE = """
import sys
from cntr.attach import readonly_interpreter as interpreter
without = "import cntr.attach.identity; cntr.attach.identity.CAP_SYS_PTRACE = 0; from cntr"
interpreter.CODE = interpreter.CODE.replace("from cntr", without)
from cntr.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def grabbers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The two programs of grab.c."""
    if not shutil.which("gcc"):
        pytest.skip("not installed: gcc (apt-get install)")
    directory, source = tmp_path_factory.mktemp("grab"), str(pathlib.Path(__file__).with_name("grab.c"))
    loader, grabbed = str(directory / "loader"), str(directory / "grabbed")
    bare = ["-nostdlib", "-static-pie", "-fPIE", "-fno-stack-protector"]
    subprocess.run(["gcc", "-O1", "-Wall", *bare, "-o", loader, source], check=True)
    subprocess.run(["gcc", "-O1", "-Wall", "-static", "-DGRABBED", "-o", grabbed, source], check=True)
    return loader, grabbed


def loader_path() -> str:
    """The path of the host's Python's dynamic loader (elf(5), PT_INTERP)."""
    with open(os.path.realpath(sys.executable), "rb") as file:
        return elf.Elf(file.fileno()).interpreter


@pytest.fixture
def python(tmp_path: pathlib.Path) -> str:
    """A copy of the host's Python that only this test runs, since a file that is being run can't be written (ETXTBSY)."""
    (tmp_path / "copy" / "bin").mkdir(parents=True)
    (tmp_path / "copy" / "lib").symlink_to(f"{sys.base_prefix}/lib")  # where it looks for libraries, beside itself
    return str(shutil.copy(os.path.realpath(sys.executable), tmp_path / "copy" / "bin" / "python"))


def trap(grabbers: tuple[str, str], root: pathlib.Path) -> BusyboxContainer:
    """A container with the trap in /bin/sh and, in another form, /bin/tool; its first process is the accomplice."""
    loader, grabbed = grabbers
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_text("#!/proc/self/exe\n")
    (root / "bin" / "sh").chmod(0o755)
    return BusyboxContainer(
        root=root,
        busybox=False,
        argv=["/grabbed", "/loot"],
        programs={loader_path(): loader, "/grabbed": grabbed},
        links={"/bin/tool": "/proc/self/exe"},
    )


def identity(path: str) -> str:
    info = os.stat(path)
    return f"{info.st_dev}:{info.st_ino}"


def spring(python: str, code: str, *arguments: str) -> None:
    """Run cntr with the Python PYTHON."""
    subprocess.run(
        [python, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


def loot(container: BusyboxContainer) -> tuple[str, str]:
    """(the file that the accomplice has opened, the result of its attempt to write to it)."""
    deadline = time.monotonic() + 10
    while not (path := container.root / "loot").exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, "the trap did not spring"
        time.sleep(0.02)
    handle, _, answer = path.read_text().strip().partition(" ")
    return handle, answer


@pytest.mark.parametrize("command", ["/bin/sh", "/bin/tool"])
def test_the_hosts_interpreter_cannot_be_written_to(grabbers, tmp_path, python, command):
    with trap(grabbers, tmp_path / "root") as container:
        spring(python, PLAIN, "exec", str(container.pid), "--", command)
        assert loot(container) == (identity(python), "Read-only file system")


def test_control_without_the_protection_it_can(grabbers, tmp_path, python):
    with trap(grabbers, tmp_path / "root") as container:
        spring(python, UNPROTECTED, "exec", str(container.pid), "--", "/bin/sh")
        assert loot(container) == (identity(python), "writable")


def test_without_the_right_to_mount_a_sealed_copy_does(grabbers, tmp_path, python):
    with trap(grabbers, tmp_path / "root") as container:
        spring(python, SEALED, "exec", str(container.pid), "--", "/bin/sh")
        handle, answer = loot(container)
        assert handle != identity(python), "it can only get hold of a copy"
        assert answer == "Operation not permitted"


@pytest.mark.parametrize("kind", ["container", "directory"])
def test_tools_that_are_a_trap(grabbers, tmp_path, python, kind):
    """A shell of another container, or of an unpacked image, is not trusted either."""
    with trap(grabbers, tmp_path / "root") as container, trap(grabbers, tmp_path / "tools") as tools:
        source = str(tools.pid) if kind == "container" else str(tools.root)
        spring(python, OPEN_TO_THE_ACCOMPLICE, "attach", str(container.pid), "--tools", source, "--", "/bin/sh")
        assert loot(container) == (identity(python), "Read-only file system")


def test_the_way_there_changes_nothing_for_the_user(tmp_path):
    """The restart keeps arguments, standard streams, directory, environment and modules."""
    with BusyboxContainer() as container:
        done = container.exec(
            "-e",
            "A=b c",
            "--",
            "sh",
            "-c",
            'read x; echo "$x $A $0 $1"; echo e >&2; exit 7',
            "zero",
            "o n e",
            input="in\n",
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, "in b c zero o n e\n", "e\n")
        done = container.exec("--", "/not/there")
        assert done.returncode == 127
        assert "Traceback" not in done.stderr


def test_a_program_that_cannot_be_run_is_told_why():
    with BusyboxContainer() as container:
        for words, status, hint in (
            (["ls -l /"], 127, "arguments are words of their own"),
            (["/proc"], 126, "is a directory"),
            (["/proc/version"], 126, "chmod +x"),
        ):
            done = container.exec("--", *words)
            assert (done.returncode, done.stdout) == (status, "")
            assert hint in done.stderr


def test_it_finds_its_modules_where_the_path_does_not_lead():
    """An editable install is found by an import hook, which the restart omits with the rest of site."""
    code = f"""
import sys
sys.path.insert(0, {REPOSITORY!r})
import cntr.cli.main, cntr.attach.walk, cntr.attach.readonly_interpreter
sys.path.remove({REPOSITORY!r})
sys.exit(cntr.cli.main.run(sys.argv[1:]))
"""
    with BusyboxContainer() as container:
        done = subprocess.run(
            [sys.executable, "-c", code, "exec", str(container.pid), "--", "id", "-u"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done


@pytest.fixture
def relocated(tmp_path: pathlib.Path) -> str:
    """A Python that finds its shared library beside it ($ORIGIN), as relocatable builds do."""
    name = sysconfig.get_config_var("INSTSONAME")
    library = pathlib.Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("MULTIARCH") or "", name)
    library = library if library.exists() else library.parents[1] / name
    if not library.exists() or ".so" not in name or not shutil.which("gcc"):
        pytest.skip(f"not installed: gcc, or {name} (apt-get install python3-dev)")
    program, copy = tmp_path / "bin" / "python", tmp_path / "lib" / f"{name[:-1]}9"  # a name found nowhere else
    program.parent.mkdir()
    copy.parent.mkdir()
    copy.write_bytes(library.read_bytes().replace(name.encode(), copy.name.encode()))
    source = "int Py_BytesMain(int, char **); int main(int n, char **words) { return Py_BytesMain(n, words); }"
    command = ["gcc", "-x", "c", "-", "-x", "none", str(copy), "-Wl,-rpath,$ORIGIN/../lib", "-o", str(program)]
    subprocess.run(command, input=source, text=True, check=True)
    return str(program)


@pytest.mark.parametrize("code", [PLAIN, SEALED], ids=["mount", "sealed"])
@pytest.mark.parametrize("given", [{}, {"LD_LIBRARY_PATH": "/nowhere"}], ids=["plain", "searching"])
def test_a_relocatable_python_still_finds_its_library(relocated, code, given):
    """It is found by a variable, of which the program only sees the caller's value."""
    with BusyboxContainer() as container:
        words = [
            "exec",
            *(f"-e{name}" for name in given),
            str(container.pid),
            "--",
            "sh",
            "-c",
            "echo $LD_LIBRARY_PATH",
        ]
        done = subprocess.run(
            [relocated, "-c", code, *words],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY, "PYTHONHOME": sys.base_prefix, **given},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{given.get('LD_LIBRARY_PATH', '')}\n", "")


def test_no_fd_of_ours_reaches_the_command():
    with BusyboxContainer() as container, open("/etc/hostname") as extra:
        os.set_inheritable(extra.fileno(), True)
        done = container.exec("--", "ls", "/proc/self/fd", pass_fds=[extra.fileno()])
        assert done.stdout.split() == ["0", "1", "2", "3"], "3 is the directory that ls reads"


def test_attackers_get_nothing_of_the_host_while_it_starts(tmp_path, prowler):
    """Until its exec, the process is the host's Python with the host's memory."""
    container, loot = workspace(tmp_path, prowler, "same", "1000", "1000+")
    with container:
        visits(str(container.pid), verb="exec", commands=[["true"], ["sh", "-c", "sleep 0.1"]], rounds=5)
        assert [line for line in loot.raw() if line.split()[1] in ("root", "cwd")] == []
        executables = {line.split()[4] for line in loot.raw() if line.split()[1] == "exe"}
        assert executables <= {identity(str(container.root / "bin" / "busybox"))}
        assert loot.seen() > 100


@pytest.mark.parametrize("verb", ["exec", "attach", "unprotected"])
def test_the_callers_terminal_is_out_of_reach(verb):
    """With a pipe for stdout there is no pty: the container's program must not find the caller's terminal behind /dev/tty and type
    there (TIOCSTI), nor may what the tools run. Without the session of its own it is reached, and so the check can fail."""
    with BusyboxContainer() as container:
        script = "(: </dev/tty) 2>/dev/null && echo reached || echo refused"
        command = f"{' '.join(CNTR)} {verb} {container.pid} --"
        if verb == "unprotected":
            code = "import os; os.setsid = lambda: 0; from cntr.__main__ import main; main()"
            command = f'{sys.executable} -c "{code}" attach {container.pid} --'
        with Terminal("sh", "-c", f"{command} sh -c '{script}' | cat; echo done") as terminal:
            shown = terminal.wait_for(r"(reached|refused)\s+done").group(1)
        assert shown == ("reached" if verb == "unprotected" else "refused")


def test_ctrl_c_still_ends_a_program_without_a_pty():
    with BusyboxContainer() as container:
        line = f"{' '.join(CNTR)} exec {container.pid} -- sh -c 'echo up; sleep 60' | cat"
        with Terminal("bash", "-c", f"trap : INT; {line}; echo ended-${{PIPESTATUS[0]}}") as terminal:
            terminal.wait_for("up")
            terminal.type("\x03")
            assert terminal.wait_for(r"ended-(\d+)").group(1) == "130"
