"""Test suites in Debian packages: python -m tests.suites.apt [--only acl,attr,cpython,stress-ng,fio]

acl and attr (the source packages' own tests), the parts of CPython's test suite that touch files, stress-ng's
filesystem class with --verify, fio with --verify. Each test runs on ext4 and on CntrFS, back to back. Only new failures
count, and a test that is now "not run" is one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

from testkit import rooms
from testkit.servers import BINDINGS, REPOSITORY, SETID_AND_DEVICES, Server, missing

from .results import DIED, FAIL, NOTRUN, PASS, TIMEOUT, Outcome, Progress, Run, finish

TABLE = Path(__file__).with_name("apt.table")
PYTHON = "/usr/bin/python3"
CPYTHON_MODULES = (
    "test_bufio test_compileall test_dbm test_dbm_dumb test_fcntl test_file test_filecmp test_fileinput test_fileio "
    "test_genericpath test_glob test_io test_largefile test_mailbox test_mmap test_os test_pathlib test_posix "
    "test_posixpath test_shelve test_shutil test_sqlite3 test_stat test_tarfile test_tempfile test_zipfile"
).split()
FIO_JOBS = {
    "seq-write": "--rw=write --bs=128k",
    "seq-write-4k": "--rw=write --bs=4k --size=16m",
    "rand-write": "--rw=randwrite --bs=4k",
    "rand-rw": "--rw=randrw --bs=4k",
    "rand-write-unaligned": "--rw=randwrite --bsrange=1k-64k --bs_unaligned",
    "mmap": "--rw=randwrite --bs=4k --ioengine=mmap",
    "vectors": "--rw=randwrite --bs=4k --ioengine=pvsync",
    "direct": "--rw=randwrite --bs=4k --direct=1",
    "libaio": "--rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1",
    "fsync": "--rw=randwrite --bs=16k --fsync=8",
    "fallocate": "--rw=randwrite --bs=4k --fallocate=posix",
    "four-jobs": "--rw=randwrite --bs=8k --numjobs=4 --size=8m",
}

Test = tuple[str, Callable[[Path], "Outcome | dict[str, Outcome]"]]


def missing_tool(*tools: str) -> str:
    """The name of a tool that is not installed, or ""."""
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


# acl and attr


def fetch_sources(room: Path) -> Path:
    """Fetch the source packages by apt, with additional source entries."""
    target = room / "sources"
    lists = target / "lists"
    lists.mkdir(parents=True)
    text = ""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            text += re.sub(r"^Types:.*$", "Types: deb-src", path.read_text(), flags=re.MULTILINE) + "\n\n"
        elif path.exists() and path.suffix == ".list":
            for line in path.read_text().splitlines():
                if line.startswith("deb "):
                    words = line.split()
                    found = [word for word in words[1:] if not word.startswith("[")]
                    text += (
                        f"Types: deb-src\nURIs: {found[0]}\nSuites: {found[1]}\nComponents: {' '.join(found[2:])}\n\n"
                    )
    (target / "source.sources").write_text(text)
    apt = [
        "apt-get", "-q", "-o", f"Dir::Etc::sourcelist={target}/source.sources", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    for words in (["update"], ["source", "--download-only", "acl", "attr"]):
        subprocess.run([*apt, *words], cwd=target, check=True, capture_output=True)
    for dsc in target.glob("*.dsc"):
        subprocess.run(["dpkg-source", "-x", dsc, target / dsc.name.partition("_")[0]], check=True, capture_output=True)
    return target


def acl_and_attr(name: str, sources: Path) -> Iterator[Test]:
    """Run the *.test files of one package, which list commands and their expected output."""
    directory = sources / name / "test"
    for file in sorted(directory.rglob("*.test")):
        relative = file.relative_to(directory)

        def run(place: Path, relative: Path = relative) -> Outcome:
            copy = place / f"{name}-{str(relative).replace('/', '-')}"
            shutil.copytree(directory, copy)
            environment = os.environ | {
                "PATH": f"{copy}:{os.environ['PATH']}",
                "LC_ALL": "C",
                "LANG": "C",
                "TUSER": "bin",
            }
            status, output = rooms.run_limited(
                ["perl", str(copy / "run"), str(copy / relative)], 300, copy, environment
            )
            counted = re.findall(r"^(\d+) commands \((\d+) passed, (\d+) failed\)", output, re.MULTILINE)
            if status is None:
                return Outcome(TIMEOUT, detail="killed at the time limit")
            if not counted:
                return Outcome(FAIL, detail=output.strip()[-300:], checks=1, failed=1)
            checks, failed = int(counted[-1][0]), int(counted[-1][2])
            bad = re.findall(r"^\[\d+\] (.*) -- failed", output, re.MULTILINE)
            return Outcome(FAIL if failed else PASS, detail="; ".join(bad)[:300], checks=checks, failed=failed)

        yield f"{name}/{relative}", run


# CPython


def cpython(modules: list[str]) -> Iterator[Test]:
    """Run each module as one test; the JUnit file has its single tests."""
    for module in modules:

        def run(place: Path, module: str = module) -> dict[str, Outcome]:
            junit = Path(f"/tmp/{module}-{time.monotonic_ns()}.xml")
            directory = place / module
            directory.mkdir(mode=0o777)
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            environment |= {"TMPDIR": str(directory), "LC_ALL": "C.UTF-8"}
            status, output = rooms.run_limited(
                [PYTHON, "-m", "test", "--tempdir", str(directory), "--junit-xml", str(junit), "--timeout", "240", module],
                600, directory, environment,
            )  # fmt: skip
            if status is None or not junit.exists():
                kind = TIMEOUT if status is None else FAIL
                return {f"cpython/{module}": Outcome(kind, detail=output.strip()[-300:], checks=1, failed=1)}
            return _from_junit(module, junit, status, output)

        yield f"cpython/{module}", run


def _from_junit(module: str, junit: Path, status: int, output: str) -> dict[str, Outcome]:
    failed, skipped, count = [], [], 0
    for case in ElementTree.parse(junit).iter("testcase"):
        count += 1
        name = case.get("name", "?").removeprefix(f"test.{module}.")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            skipped.append(name)
    outcomes = {f"cpython/{module}/{name}": Outcome(FAIL, checks=0) for name in failed}
    outcomes |= {f"cpython/{module}/{name}": Outcome(NOTRUN, checks=0) for name in skipped}
    whole = Outcome(PASS, checks=count, failed=len(failed))
    if status not in (0, 2) or (status and not failed):
        whole = Outcome(FAIL if count else NOTRUN, detail=output.strip()[-200:], checks=count, failed=len(failed))
    outcomes[f"cpython/{module}"] = whole
    return outcomes


# stress-ng and fio


def stress_ng(seconds: int) -> Iterator[Test]:
    """Run every stressor of the filesystem class, which verifies what it reads."""
    listed = subprocess.run(["stress-ng", "--class", "filesystem?"], capture_output=True, text=True)
    names = re.sub(r"^.*?:", "", (listed.stdout + listed.stderr).replace("\n", " ")).split()
    for name in names:

        def run(place: Path, name: str = name) -> Outcome:
            directory = place / f"stress-{name}"
            directory.mkdir(mode=0o777)
            command = [
                "stress-ng",
                f"--{name}",
                "1",
                "--timeout",
                f"{seconds}s",
                "--verify",
                "--temp-path",
                str(directory),
            ]
            status, output = rooms.run_limited([*command, "--oomable"], seconds * 10 + 60, directory)
            bad = "; ".join(re.findall(r"(?:fail|error):\s+\[\d+\] (.*)", output))[:300]
            if status is None:
                return Outcome(TIMEOUT, detail="killed at the time limit")
            if status in (3, 4) or "skipping" in output:
                return Outcome(NOTRUN, detail=bad or "no resource, or not implemented")
            return Outcome(PASS if status == 0 else FAIL, detail=bad, checks=1, failed=int(status != 0))

        yield f"stress-ng/{name}", run


def fio(mebibytes: int) -> Iterator[Test]:
    """Run the jobs, each on a file of that many MiB unless it sets a size."""
    for name, words in FIO_JOBS.items():

        def run(place: Path, name: str = name, words: str = words) -> Outcome:
            size = [] if "--size" in words else [f"--size={mebibytes}m"]
            command = ["fio", f"--name={name}", f"--directory={place}", *words.split(), *size]
            command += ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting", "--minimal"]
            status, output = rooms.run_limited(command, 300, place)
            if status is None:
                return Outcome(TIMEOUT, detail="killed at the time limit")
            return Outcome(
                PASS if status == 0 else FAIL,
                detail="" if status == 0 else output[-300:],
                checks=1,
                failed=int(status != 0),
            )

        yield f"fio/{name}", run


class AptDirectory:
    """A directory on a fresh ext4, with or without CntrFS over it."""

    def __init__(self, name: str, room: Path) -> None:
        self.name = name
        self.backing = rooms.ext4(room, f"backing-{name}", "4G")
        self.backing.chmod(0o755)
        self.directory = self.backing
        self.server: Server | None = None
        self.count = 0
        if name != "native":
            self.directory = room / f"mount-{name}"
            self.directory.mkdir()
            self.server = Server(name, self.backing, self.directory, room / f"{name}.log", options=SETID_AND_DEVICES)
            self.server.start()

    def run(self, test: Test) -> dict[str, Outcome]:
        started = time.monotonic()
        self.count += 1
        directory = self.directory / f"run{self.count}"
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        try:
            found = test[1](directory)
        except (OSError, shutil.Error) as error:
            found = Outcome(FAIL, detail=str(error)[:300], checks=1, failed=1)
        outcomes = {test[0]: found} if isinstance(found, Outcome) else found
        outcomes[test[0]].seconds = round(time.monotonic() - started, 1)
        if self.server is not None and not self.server.alive:
            outcomes = {test[0]: Outcome(DIED, detail=self.server.log_end(500), checks=1, failed=1)}
            self.server.kill()
            self.server.start()
        subprocess.run(["rm", "-rf", str(directory)], check=False)
        return outcomes


def collect(only: set[str], room: Path, options: argparse.Namespace) -> list[Test]:
    """The tests of the requested suites. What a suite lacks is reported."""
    tests: list[Test] = []
    if only & {"acl", "attr"}:
        tools = ("perl", "setfacl", "getfacl", "setfattr", *(() if options.sources else ("dpkg-source",)))
        if why := missing_tool(*tools):
            print(f"acl, attr left out: {why}")
        else:
            sources = options.sources or fetch_sources(room)
            for name in sorted(only & {"acl", "attr"}):
                tests += acl_and_attr(name, sources)
    if "cpython" in only:
        if subprocess.run([PYTHON, "-c", "import test.test_os"], capture_output=True).returncode:
            print("cpython left out: the package libpython3.x-testsuite of the system's Python is missing")
        else:
            tests += cpython(options.cpython_modules.split(","))
    for name, make in (
        ("stress-ng", lambda: stress_ng(options.stress_seconds)),
        ("fio", lambda: fio(options.fio_size)),
    ):
        if name in only:
            if why := missing_tool(name):
                print(f"{name} left out: {why}")
            else:
                tests += make()
    return tests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.apt", description=__doc__)
    parser.add_argument("--only", default="acl,attr,cpython,stress-ng,fio")
    parser.add_argument("--bindings", default=",".join(BINDINGS))
    parser.add_argument(
        "--sources", type=Path, help="where acl's and attr's sources are unpacked (default: fetched by apt)"
    )
    parser.add_argument("--cpython-modules", default=",".join(CPYTHON_MODULES), metavar="MODULE,…")
    parser.add_argument("--stress-seconds", type=int, default=2)
    parser.add_argument("--fio-size", type=int, default=64, metavar="MIB")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "reports")
    options = parser.parse_args()
    room = rooms.enter(options.reports)
    names = ["native"]
    for binding in filter(None, options.bindings.split(",")):
        if why := missing(binding):
            print(f"{binding} left out: {why}")
        else:
            names.append(binding)
    tests = collect(set(options.only.split(",")), room, options)
    run = Run("apt", names, command=f"python -m tests.suites.apt {' '.join(sys.argv[1:])}")
    places = [AptDirectory(name, room) for name in names]
    progress = Progress(len(tests) * len(places))
    for test in tests:
        for place in places:
            for name, outcome in place.run(test).items():
                run.add(name, place.name, outcome)
            outcome = run.outcomes[test[0]][place.name]
            progress.step(f"{test[0]} on {place.name}", f"{outcome.status} {outcome.detail[:100]}".strip())
    _fill_in(run)
    for place in places:
        if place.server is not None and (problem := place.server.stop()):
            print(f"{place.name}: {problem}")
    return finish(run, TABLE, options.reports)


def _fill_in(run: Run) -> None:
    """Single tests of CPython are only recorded if they did not pass; without a record they passed."""
    for test, places in run.outcomes.items():
        if test.count("/") > 1 and test.startswith("cpython/"):
            for place in run.places:
                places.setdefault(place, Outcome(PASS))


if __name__ == "__main__":
    sys.exit(main())
