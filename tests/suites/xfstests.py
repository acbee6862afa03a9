"""Run an installed xfstests on ext4 and on CntrFS: python -m tests.suites.xfstests --dir PATH [-g generic/quick]

PATH is a built copy of xfstests. Each test is one run of its ``check`` with a time limit, so that a hang costs only
that test. In the room (see rooms.py) /etc and /usr/sbin are overlaid with the users and the mount helper that xfstests
needs; the host's are not changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from testkit import rooms
from testkit.servers import BINDINGS, MODES, REPOSITORY, is_mountpoint, missing

from .results import BAD, DIED, FAIL, NOTRUN, PASS, TIMEOUT, Outcome, Progress, Run, finish, read_cannot, why_not

TABLE = Path(__file__).with_name("xfstests.table")

_USERS = (("fsgqa", 20031), ("123456-fsgqa", 20032), ("fsgqa2", 20033))


def prepare_host(room: Path) -> None:
    """Add the users that xfstests needs to the room's /etc, and make /usr/sbin writable for the mount helper."""
    rooms.overlay(room, "/etc")
    rooms.overlay(room, "/usr/sbin")
    for name, number in _USERS:
        for file, line in (
            ("passwd", f"{name}:x:{number}:{number}::/tmp:/bin/bash"),
            ("group", f"{name}:x:{number}:"),
            ("shadow", f"{name}:*:19000:0:99999:7:::"),  # without it, su(1) refuses even root
        ):
            text = Path("/etc", file).read_text()
            if f"\n{name}:" not in text:
                Path("/etc", file).write_text(f"{text.rstrip()}\n{line}\n")


def install_helper(binding: str) -> None:
    """Write /sbin/mount.fuse.cntrfs for this binding or mode, since xfstests only calls mount(8). It compares the type
    that df shows with FSTYP, so mounts have the type "fuse" without the subtype.
    """
    binding, mode = MODES.get(binding, (binding, ()))
    words = ",".join((f"binding={binding}", *mode[1::2]))
    program = "from cntr.cntrfs import mount_helper, mounting; mounting.FSTYPE = 'fuse'; raise SystemExit(mount_helper.main())"
    helper = Path("/usr/sbin/mount.fuse.cntrfs")
    helper.write_text(
        f'#!/bin/sh\ncd /; PYTHONPATH={REPOSITORY} exec {sys.executable} -c "{program}" "$@" -o {words}\n'
    )
    helper.chmod(0o755)


class XfstestsDirectories:
    """Where the tests run, as variables of xfstests' configuration."""

    def __init__(self, name: str, room: Path, top: Path) -> None:
        self.name, self.room, self.top = name, room, top
        self.results = room / f"results-{name}"
        self.test_dir, self.scratch = room / f"test-{name}", room / f"scratch-{name}"
        for directory in (self.results, self.test_dir, self.scratch):
            directory.mkdir(mode=0o755)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "TEST_DIR": str(self.test_dir), "SCRATCH_MNT": str(self.scratch), "RESULT_BASE": str(self.results),
            "HOST_OPTIONS": "/nonexistent", "CANON_DEVS": "no", "LC_ALL": "C",
            "FSTESTS_ISOL": "privatens",  # below the room's /proc is another, which shows the locks of dead processes
        }  # fmt: skip
        if name == "native":
            test, scratch = rooms.loop_device(room, "test"), rooms.loop_device(room, "scratch")
            subprocess.run(["mkfs.ext4", "-q", "-F", test], check=True)
            self.environment |= {"FSTYP": "ext4", "TEST_DEV": test, "SCRATCH_DEV": scratch}
            self.backing: list[Path] = []
        else:
            self.backing = [rooms.ext4(room, f"{letter}-{name}") for letter in "ts"]
            options = "-oallow_other,default_permissions,allow_dev,allow_suid"
            self.environment |= {
                "FSTYP": "fuse", "FUSE_SUBTYP": ".cntrfs",
                "TEST_DEV": f"source:{self.backing[0]}", "SCRATCH_DEV": f"source:{self.backing[1]}",
                "MOUNT_OPTIONS": options, "TEST_FS_MOUNT_OPTS": options,
            }  # fmt: skip

    def run(self, test: str, limit: float, reports: Path) -> Outcome:
        if self.name != "native":
            install_helper(self.name)
        started = time.monotonic()
        status, output = rooms.run_limited(["./check", test], limit, self.top, self.environment)
        outcome = self._outcome(test, status, output)
        outcome.seconds = round(time.monotonic() - started, 1)
        died = self._reap_daemons()
        if died and outcome.status not in (PASS, TIMEOUT):  # (at the time limit we killed what we could)
            outcome = Outcome(DIED, outcome.seconds, f"{died}; {outcome.detail}")
        if outcome.status in BAD:
            self._keep(test, output, reports)
        if outcome.status in (TIMEOUT, DIED):
            self.reset()
        return outcome

    def _outcome(self, test: str, status: int | None, output: str) -> Outcome:
        if status is None:
            return Outcome(TIMEOUT, detail="killed at the time limit")
        notrun = self.results / f"{test}.notrun"
        if notrun.exists():
            return Outcome(NOTRUN, detail=notrun.read_text(errors="replace").strip()[:300])
        if re.search(r"^Passed all 1 tests", output, re.MULTILINE):
            return Outcome(PASS)
        if "Not run:" in output:
            return Outcome(NOTRUN, detail="listed as not run")
        lines = [
            line
            for line in output.splitlines()
            if line.startswith(("    +", "    -")) and "+++" not in line and "---" not in line
        ]
        lines = lines or [line for line in output.splitlines() if line.strip()][-3:]
        return Outcome(FAIL, detail=" / ".join(line.strip() for line in lines[:4])[:400])

    def _reap_daemons(self) -> str:
        """Reap daemons, whose parent is now the runner, the room's init. Returns what a broken one printed, or ""."""
        problem = ""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return problem
            if ended is None:
                return problem
            try:
                name = Path(f"/proc/{ended.si_pid}/comm").read_text().strip()
            except OSError:
                name = ""
            os.waitpid(ended.si_pid, 0)
            if ended.si_status and name.startswith(("cntrfs", "python")):
                problem = (
                    f"a server ended with {'status' if ended.si_code == os.CLD_EXITED else 'signal'} {ended.si_status}"
                )

    def _keep(self, test: str, output: str, reports: Path) -> None:
        target = reports / "xfstests" / self.name
        target.mkdir(parents=True, exist_ok=True)
        flat = test.replace("/", "-")
        (target / f"{flat}.log").write_text(output)
        for suffix in (".out.bad", ".full"):
            source = self.results / f"{test}{suffix}"
            if source.exists() and source.stat().st_size < 1 << 20:
                shutil.copyfile(source, target / f"{flat}{suffix}")

    def reset(self) -> None:
        """After a hang or a crash, end this place's servers and unmount, so that the next test gets a fresh mount."""
        for directory in (self.scratch, self.test_dir):
            for pid in _mount_users(str(directory)):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            while is_mountpoint(directory):
                if subprocess.run(["umount", "-l", directory], check=False).returncode:
                    break
        self._reap_daemons()


def _mount_users(mountpoint: str) -> list[int]:
    """The processes whose command line contains this mount point: servers, and processes that hang on it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                if mountpoint.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def choose_tests(top: Path, words: list[str], group: str, shard: str) -> list[str]:
    """The given tests, or those of a group such as generic/quick (from its directory's group.list)."""
    tests = list(words)
    if not tests:
        directory, _, wanted = group.partition("/")
        for line in (top / "tests" / directory / "group.list").read_text().splitlines():
            number, *groups = line.split() or [""]
            if number.isdigit() and (not wanted or wanted in groups):
                tests.append(f"{directory}/{number}")
    part, _, parts = shard.partition("/")
    return tests[int(part) - 1 :: int(parts)] if parts else tests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.xfstests", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="an installed (built) xfstests")
    parser.add_argument("-g", "--group", default="generic/quick")
    parser.add_argument("--bindings", default=",".join(BINDINGS))
    parser.add_argument("--limit", type=float, default=300, help="seconds per test")
    parser.add_argument("--shard", default="", help="such as 1/4: every fourth test, from the first")
    parser.add_argument("--all-native", action="store_true", help="on ext4, also run what no FUSE filesystem can run")
    parser.add_argument("--no-native", action="store_true", help="skip ext4, which is in another report")
    parser.add_argument("--resume", action="store_true", help="continue where an earlier run's report ends")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "reports")
    parser.add_argument("tests", nargs="*", help="such as generic/001; default: the group")
    options = parser.parse_args()
    top = options.dir.resolve()
    if not (top / "check").is_file() or not (top / "ltp" / "fsstress").exists():
        print(f"{top} holds no built xfstests (wanted: {top}/check and {top}/ltp/fsstress)", file=sys.stderr)
        return 2
    room = rooms.enter(options.reports, top)
    names = []
    for binding in filter(None, options.bindings.split(",")):
        if why := missing(binding):
            print(f"{binding} left out: {why}")
        else:
            names.append(binding)
    prepare_host(room)
    places = [XfstestsDirectories(name, room, top) for name in names]
    native = None if options.no_native else XfstestsDirectories("native", room, top)
    cannot = read_cannot(TABLE.with_suffix(".cannot"))
    tests = choose_tests(top, options.tests, options.group, options.shard)
    shown_places = names if options.no_native else ["native", *names]
    run = Run("xfstests", shown_places, command=f"python -m tests.suites.xfstests {' '.join(sys.argv[1:])}")
    report = options.reports / f"{run.suite}.json"
    if options.resume and report.exists():
        earlier = Run.load(report)
        if earlier.places == run.places and earlier.kernel == run.kernel:
            run = earlier
            tests = [test for test in tests if test not in run.outcomes]
    progress = Progress(len(tests))
    for test in tests:
        wanted = options.all_native or not places
        for place in places:
            outcome = place.run(test, options.limit, options.reports)
            run.add(test, place.name, outcome)
            wanted = wanted or not why_not(cannot, place.name, outcome)
        if wanted and native:
            run.add(test, "native", native.run(test, options.limit, options.reports))
        shown = "; ".join(
            f"{name} {outcome.status} {outcome.detail[:80]}" for name, outcome in run.outcomes[test].items()
        )
        progress.step(test, shown if any(o.status in BAD for o in run.outcomes[test].values()) else PASS)
        run.save(report)
    for place in [*places, *([native] if native else [])]:
        place.reset()
    return finish(run, TABLE, options.reports)


if __name__ == "__main__":
    sys.exit(main())
