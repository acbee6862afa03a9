"""Finds out why an entrypoint cannot start, one line per reason; the kernel only says "no such file" or "exec format
error".
"""

from __future__ import annotations

import errno
import itertools
import os
import stat

from cntr.errors import printable
from cntr.images import below, mistakes
from cntr.images.elf import PATHS, Elf, NotElf, runs_here
from cntr.linux.numbers import UNAME

LINKS, LIBRARIES = 4, 400  # interpreters of interpreters (BINPRM_MAX_RECURSION is 5); libraries examined
LIBRARY_DIRECTORIES = "/lib /usr/lib /lib64 /usr/lib64 /usr/local/lib /lib32 /usr/lib32".split()
LINE = 256  # BINPRM_BUF_SIZE
TEXT = 1 << 16


class CommandUser:
    """Who is to run it: ids as ``stat`` shows them here; all: whether CAP_DAC_OVERRIDE is held."""

    def __init__(self, uid: int, groups: set[int], *, all: bool) -> None:
        self.uid, self.groups, self.all = uid, groups, all

    def may(self, status: os.stat_result, bit: int) -> bool:
        """Whether the mode lets the user read (4) or execute and search (1)."""
        mode = status.st_mode
        if self.all:
            return bit == 4 or stat.S_ISDIR(mode) or bool(mode & 0o111)
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return bool(mode >> shift & bit)


ROOT = CommandUser(0, {0}, all=True)


def lint(
    root_fd: int, argv: list[str], environment: dict[str, str], directory: str, user: CommandUser = ROOT
) -> list[str]:
    """The problems of ARGV as the first program of the tree behind ROOT_FD; [] if none is found."""
    return [printable(line) for line in _Linter(root_fd, environment, directory, user).lint(argv)]


class _Linter:
    """One root directory, and the search path for programs."""

    def __init__(self, root: int, environment: dict[str, str], directory: str, user: CommandUser) -> None:
        self.root, self.environment, self.directory, self.user = root, environment, directory, user
        self.path = environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":")[
            :PATHS
        ]
        self.scripts = 0  # scripts examined: one may lead back to itself by env(1)

    def lint(self, argv: list[str]) -> list[str]:
        if not argv:
            return ["no entrypoint and no command: the image says nothing to run"]
        found = []
        place = below.status(self.root, self.directory)
        if place is None:
            found.append(f"{self.directory}: the working directory is not there")
        elif not stat.S_ISDIR(place.st_mode):
            found.append(f"{self.directory}: the working directory is a file")
        return found + self._words(argv, 0)

    def _words(self, argv: list[str], depth: int) -> list[str]:
        """A command and, where that is sound, what it runs in its turn."""
        found = self._program(argv[0], 0)
        if found or depth > LINKS:
            return found
        more = mistakes.runs_next(argv)
        if more:
            return [f"{os.path.basename(argv[0])} runs {line}" for line in self._words(more, depth + 1)]
        script = mistakes.script_of(argv)
        return self._script_file(argv[0], script) if script else []

    def _script_file(self, program: str, name: str) -> list[str]:
        """What an interpreter is given to read; a shell looks for it in PATH, too."""
        path = name if name.startswith("/") else f"{self.directory.rstrip('/')}/{name}"
        if os.path.basename(program) in mistakes.SHELLS and "/" not in name and below.status(self.root, path) is None:
            path = self.find(name) or path
        status = below.status(self.root, path)
        if status is None:
            return [f"{program} reads {path}: not found{self._why_not(path)}"]
        if not stat.S_ISREG(status.st_mode):
            return []
        if not self.user.may(status, 4):
            return [
                f"{program} reads {path}: uid {self.user.uid} may not read it (mode {stat.S_IMODE(status.st_mode):o})"
            ]
        crlf = os.path.basename(program) in mistakes.SHELLS and b"\r\n" in below.head(self.root, path, TEXT)
        return [f"{program} reads {path}: CRLF line endings: dos2unix"] if crlf else []

    def find(self, name: str) -> str:
        """The path of a program, as execvp(3) finds it; "" if there is none."""
        if "/" in name:
            return name if name.startswith("/") else f"{self.directory.rstrip('/')}/{name}"
        second = ""
        for directory in self.path:
            directory = directory or "."
            path = f"{directory if directory.startswith('/') else f'{self.directory}/{directory}'}/{name}"
            status = below.status(self.root, path)
            if status and stat.S_ISREG(status.st_mode):
                if self.user.may(status, 1):
                    return path
                second = second or path  # one that may be executed goes before
        return second

    def _program(self, name: str, depth: int) -> list[str]:
        path = self.find(name)
        if depth and not name.startswith("/"):  # an interpreter is not looked for in PATH (execve(2))
            path = f"{self.directory.rstrip('/')}/{name}"
        if not path:
            return [
                f"{name or repr(name)}: not found in PATH ({':'.join(self.path)[: LINE * 4]}){mistakes.of_word(name)}"
            ]
        status = below.status(self.root, path)
        if status is None:
            return [f"{path}: not found{mistakes.of_word(name) or self._why_not(path)}"]
        if not stat.S_ISREG(status.st_mode):
            return [f"{path}: a {'directory' if stat.S_ISDIR(status.st_mode) else 'special file'}, not a program"]
        found = self._forbidden(path, status)
        try:
            head = below.head(self.root, path, TEXT)
        except OSError as error:
            return [*found, f"{path}: {error.strerror}"]
        if head.startswith(b"#!"):
            return found + self._script(path, head, depth)
        if head.startswith(b"\x7fELF"):
            return found + self._elf(path)
        return [*found, f"{path}: {mistakes.kind_of(head)}"]

    def _forbidden(self, path: str, status: os.stat_result) -> list[str]:
        """Why the kernel says "permission denied"."""
        mode = f"(mode {stat.S_IMODE(status.st_mode):o})"
        if not status.st_mode & 0o111:
            return [f"{path}: not executable {mode}: chmod +x"]
        if not self.user.may(status, 1):
            return [f"{path}: uid {self.user.uid} may not execute it {mode}"]
        parts = path.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count]) or "/"
            place = below.status(self.root, above)
            if place and stat.S_ISDIR(place.st_mode) and not self.user.may(place, 1):
                mode = f"(mode {stat.S_IMODE(place.st_mode):o})"
                return [f"{path}: uid {self.user.uid} may not search {above} {mode}"]
        fd = below.opened(self.root, path, os.O_PATH)
        try:
            noexec = os.fstatvfs(fd).f_flag & os.ST_NOEXEC
        finally:
            os.close(fd)
        return [f"{path}: on a file system that is mounted noexec"] if noexec else []

    def _why_not(self, path: str) -> str:
        """Where a link leads that leads nowhere; a file in place of a directory; another name that differs in case alone."""
        dangling = self._dangling(path)
        if dangling:
            return dangling
        parent, _, last = path.rpartition("/")
        try:
            fd = below.opened(self.root, parent or "/", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            return f": {parent} is no directory" if error.errno == errno.ENOTDIR else ""
        names = _names(fd)
        like = [name for name in names if name.casefold() == last.casefold()]
        return f": there is {like[0]}" if like else ""

    def _dangling(self, path: str) -> str:
        """Where a dangling symbolic link points."""
        parent, _, last = path.rpartition("/")
        try:
            fd = below.opened(self.root, parent or "/", os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            return f": there is no {parent}" if error.errno != errno.ENOTDIR else ""
        try:
            target = os.readlink(last, dir_fd=fd)
        except OSError:
            return ""
        finally:
            os.close(fd)
        try:
            os.close(below.opened(self.root, path, os.O_PATH))
        except OSError as error:
            if error.errno == errno.ELOOP:
                return f": a link to {target}, and so on without end"
        return f": a link to {target}, which is not there"

    def _script(self, path: str, head: bytes, depth: int) -> list[str]:
        line = head.partition(b"\n")[0]
        if line.endswith(b"\r"):
            return [
                f"{path}: CRLF line endings: its interpreter would be {os.fsdecode(line[2:].strip(b' ' + bytes([9])))!r}: dos2unix"
            ]
        if len(line) > LINE:
            return [f"{path}: a first line of more than {LINE} bytes"]
        words = os.fsdecode(line[2:]).split(None, 1)
        if not words:
            return [f"{path}: #! without an interpreter"]
        self.scripts += 1
        if depth >= LINKS or self.scripts > 2 * LINKS:
            return [f"{path}: an interpreter that is a script, too often"]
        interpreter, argument = words[0], (words[1].strip() if len(words) > 1 else "")
        found = [f"{path}: its interpreter: {one}" for one in self._program(interpreter, depth + 1)]
        if not found and not self.user.may(below.status(self.root, path) or os.stat_result(range(10)), 4):
            found = [f"{path}: uid {self.user.uid} may not read it, and its interpreter has to"]
        if interpreter.rpartition("/")[2] == "env" and argument and not found:
            found = [f"{path}: its interpreter: {one}" for one in self._env(argument)]
        if b"\r\n" in head and not found:
            found.append(f"{path}: CRLF line endings after the first line")
        return found

    def _env(self, argument: str) -> list[str]:
        """`#!/usr/bin/env NAME`: all behind env is one word, but for -S."""
        words = argument.split()
        if words[0] == "-S" or words[0].startswith("-S"):
            words = " ".join(words)[2:].split()
            words = [word for word in words if "=" not in word]
        elif len(words) > 1:
            return [f"env looks for a program that is called {argument!r}: env -S splits it"]
        return self._program(words[0], 0) if words and not words[0].startswith("-") else []

    def _elf(self, path: str) -> list[str]:
        try:
            elf = self._read_elf(path)
        except (NotElf, OSError) as error:
            return [f"{path}: {error}"]
        if elf.kind not in (2, 3):  # ET_EXEC, ET_DYN
            return [f"{path}: an object file or a core file, not a program (exec format error)"]
        if not runs_here(elf.machine):
            return [f"{path}: a program for {elf.machine}, on {UNAME} (exec format error)"]
        if elf.interpreter and below.status(self.root, elf.interpreter) is None:
            return [f"{path}: its interpreter {elf.interpreter} is not there: built for another libc? (no such file)"]
        return self._libraries(path, elf) if elf.interpreter else []

    def _read_elf(self, path: str) -> Elf:
        fd = below.regular(self.root, path)
        try:
            return Elf(fd)
        finally:
            os.close(fd)

    def _libraries(self, path: str, program: Elf) -> list[str]:
        """Every needed library that is missing, and what needs it."""
        usual = self._library_directories(program)
        missing: list[str] = []
        seen: set[str] = set()
        waiting = [(path, program)]
        while waiting and len(seen) < LIBRARIES:
            user, elf = waiting.pop(0)
            origin = user.rpartition("/")[0]
            own = [one.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for one in elf.paths]
            for name in elf.needed:
                if name in seen or len(seen) >= LIBRARIES:
                    continue
                seen.add(name)
                places = [name] if "/" in name else [f"{directory}/{name}" for directory in [*own, *usual] if directory]
                for place in places:
                    try:
                        library = self._read_elf(place)
                    except (NotElf, OSError):
                        continue
                    if (library.machine, library.bits) == (program.machine, program.bits):
                        waiting.append((place, library))
                        break
                else:
                    missing.append(f"{user}: its library {name} is not there")
        return missing

    def _library_directories(self, program: Elf) -> list[str]:
        found = self.environment.get("LD_LIBRARY_PATH", "").split(":")
        found += self._configured("etc/ld.so.conf", 0, set())
        machine = {"x86_64": "x86_64", "aarch64": "aarch64", "i386": "i386"}.get(program.machine, UNAME)
        for triplet in (f"{machine}-linux-gnu", f"{machine}-linux-musl"):
            found += [f"/lib/{triplet}", f"/usr/lib/{triplet}", f"/usr/local/lib/{triplet}"]
        for line in self._text(f"etc/ld-musl-{machine}.path").replace(":", "\n").splitlines():
            found.append(line.strip())
        return [*found[:PATHS], *LIBRARY_DIRECTORIES, os.path.dirname(program.interpreter)]

    def _text(self, path: str) -> str:
        status = below.status(self.root, path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return ""
        try:
            return os.fsdecode(below.head(self.root, path, TEXT))
        except OSError:
            return ""

    def _configured(self, path: str, depth: int, seen: set[str]) -> list[str]:
        """The directories in ld.so.conf(5) and its includes."""
        found = []
        for line in self._text(path).splitlines():
            line = line.partition("#")[0].strip()
            if line.startswith("include ") and depth < 4:
                directory = os.path.dirname(line[8:].strip())
                if directory in seen:  # they may include each other, as often as they like
                    continue
                seen.add(directory)
                try:
                    fd = below.opened(self.root, directory, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    continue
                names = sorted(name for name in _names(fd) if name.endswith(".conf"))[:64]
                for name in names:
                    found += self._configured(f"{directory}/{name}", depth + 1, seen)
            elif line.startswith("/"):
                found.append(line)
        return found


def _names(fd: int) -> list[str]:
    """The first TEXT names in a directory, which is then closed: a container's directory may have
    any number of names. Raises OSError.
    """
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in itertools.islice(entries, TEXT)]
    finally:
        os.close(fd)
