"""Filesystem semantics, inside a machine: the repository's own suite, Debian's acl and attr, an installed xfstests."""

import shutil
from pathlib import Path

import pytest

from lab import paths
from lab.table import SUITES
from tests.suites.apt import fetch_sources

GUEST = "/var/tmp/cntr-suite"
MANY_FILES = "five_thousand or removal_while_reading or wide_tree or walk_during_removal"
"""Checks that make thousands of files, which takes an emulated machine minutes: the host's own tests run them."""


@pytest.fixture
def mounted(machine, transport):
    """A directory served by CntrFS: (mount point, source)."""
    if transport == "mount":
        pytest.skip("the mount transport has no file system of its own")
    machine.succeed("mkdir -p /var/tmp/lab-source /var/tmp/lab-mount && chmod 1777 /var/tmp/lab-source")
    with machine.background(f"cntr mount --binding {transport} --foreground /var/tmp/lab-source /var/tmp/lab-mount"):
        machine.wait_until_succeeds("mountpoint -q /var/tmp/lab-mount")
        yield "/var/tmp/lab-mount", "/var/tmp/lab-source"
        machine.run("umount -l /var/tmp/lab-mount")
    machine.wait_until_succeeds("! mountpoint -q /var/tmp/lab-mount")


@pytest.mark.vm
def test_files_through_the_mount(mounted, machine):
    """Names, modes, links, times, attributes and ACLs survive a copy through the mount, checked on the served side."""
    through, source = mounted
    machine.succeed(
        f"cd {through} && mkdir -p d && umask 077 && echo x >d/f && chmod 4751 d/f && ln d/f d/hard && ln -s f d/soft && mkfifo d/p "
        f"&& touch -d '2001-02-03 04:05:06.789' d/f && setfattr -n user.k -v v d/f && setfacl -m u:1000:rw d/hard && mv d e"
    )
    ask = (
        "cd {} && stat -c '%n %a %u %g %h %s %Y %F' e/* && stat -c %y e/f && readlink e/soft "
        "&& getfattr --only-values -n user.k e/f && getfacl -pn e/hard"
    )
    assert machine.succeed(ask.format(through)) == machine.succeed(ask.format(source))
    machine.succeed(f"rm -r {through}/e; test ! -e {source}/e")


def _copy_suite(machine, transport):
    if transport == "mount":
        pytest.skip("the mount transport has no file system of its own")
    if machine.run("test -d " + GUEST).returncode != 0:
        for part in ("tests", "testkit", "cntr", "lab", "bench", "pyproject.toml"):
            machine.copy(paths.REPOSITORY / part, f"{GUEST}/{part}")


def _run_suite(machine, transport, suite, words, timeout):
    """Run a module of tests/suites in the machine, beside its own ext4; results worse than the suite's table are
    failures.
    """
    said = machine.run(
        f"cd {GUEST} && /opt/cntr/bin/python -m tests.suites.{suite} --bindings {transport} --reports /var/tmp/suite-report {words}",
        timeout=timeout,
    )
    assert "left out" not in said.stdout
    assert (said.returncode, said.stdout.splitlines()[-12:]) == (0, said.stdout.splitlines()[-12:])


@pytest.mark.vm
@pytest.mark.not_gate
@pytest.mark.once_a_box
def test_debian_suites(machine, transport, tmp_path):
    """acl's and attr's own tests, CPython's file tests and fio: with the results of the machine's own file system."""
    _copy_suite(machine, transport)
    if not shutil.which("dpkg-source"):  # the machine itself has no mirror to fetch from
        pytest.skip("dpkg-source (package dpkg-dev) is not installed on this host: it fetches acl's and attr's tests")
    machine.copy(fetch_sources(tmp_path), f"{GUEST}/sources")
    words = f"--only acl,attr,cpython,fio --sources {GUEST}/sources --fio-size 4"
    _run_suite(
        machine, transport, "apt", f"{words} --cpython-modules test_fcntl,test_file,test_fileio,test_stat", timeout=400
    )


@pytest.mark.vm
@pytest.mark.not_gate
@pytest.mark.once_a_box
def test_own_suite(machine, transport):
    """This repository's file system checks, on the machine's own kernel, without those of thousands of files."""
    _copy_suite(machine, transport)
    slowness = f"CNTR_TEST_SLOWNESS={machine.slowness:.1f}"
    pytest_line = f"{slowness} CNTR_TEST_BACKING=/var/tmp /opt/cntr/bin/python -m pytest -q --no-header -rfE --tb=line -p no:cacheprovider -o addopts= -W default"
    line = f"cd {GUEST} && {pytest_line} tests/fs/test_checks.py -k '{transport}- and not (writeback or {MANY_FILES})' 2>&1 | tail -n 200"
    said = machine.succeed(line, timeout=600).splitlines()
    assert " passed" in said[-1]
    if bad := [text.partition("::")[2] for text in said if text.startswith(("FAILED", "ERROR"))]:
        pytest.fail("\n".join([f"expected: no check of {len(bad)} fails on this kernel", *bad]), pytrace=False)


@pytest.mark.vm
@pytest.mark.not_gate
@pytest.mark.once_a_box
@pytest.mark.parametrize("suite", SUITES)
def test_installed_suite(suite, machine, transport, request):
    """xfstests' generic/quick and pjdfstest, by the path of an installed copy (--xfstests-dir, --pjdfstest-dir)."""
    told = request.config.getoption(f"--{suite}-dir")
    if not told:
        pytest.skip(f"no --{suite}-dir: the suite is not part of this repository")
    _copy_suite(machine, transport)
    machine.copy(Path(told), f"{GUEST}/{suite}")
    chosen = request.config.getoption(f"--{suite}-tests")
    _run_suite(machine, transport, suite, f"--dir {GUEST}/{suite} {chosen}", timeout=3600)
