"""B7: what an unprivileged user of the machine claims to be a container, and what it costs root to read it.

In a mount namespace of the test's own, with a user of its own in passwd: its runtime directory, its home, its sockets, its processes. What it names
is another's process: root's. ``cntr exec NAME`` as root must not run anything there.
"""

from __future__ import annotations

import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY

UID = 29_996
CLAIMS = (
    "docker",
    "docker_short",
    "docker_empty",
    "crun",
    "runc",
    "podman",
    "buildah",
    "lxc",
    "apptainer",
    "nspawn",
    "shim",
    "linked",
)
ENGINES = "docker podman crun runc buildah lxc apptainer nspawn containerd".split()


@pytest.fixture
def mallory():
    """A place where the user of the claims has a home, a runtime directory and the program that claims."""
    with tempfile.TemporaryDirectory(prefix="cntr-attacks-") as directory:
        os.chmod(directory, 0o755)
        home = pathlib.Path(directory, "home")
        home.mkdir()
        os.chown(home, UID, UID)
        shutil.copy(pathlib.Path(__file__).with_name("claims.py"), directory)
        passwd = pathlib.Path("/etc/passwd").read_text() + f"mallory:x:{UID}:{UID}::{home}:/bin/sh\n"
        pathlib.Path(directory, "passwd").write_text(passwd)
        yield pathlib.Path(directory)


def beside(mallory: pathlib.Path, kind: str, name: str, pid: int) -> list[str]:
    """Run a command where the user claims; its end is the end of the claim."""
    user = f"setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all env -i HOME={mallory}/home PATH=/usr/bin:/bin USER=mallory"
    script = (
        f"mount -t tmpfs -o mode=755 x /run/user; mkdir -p /run/user/{UID}; chown {UID} /run/user/{UID}; mount --bind {mallory}/passwd /etc/passwd; "
        f"mkdir -p /run/attack-other 2>/dev/null; mount -t tmpfs -o mode=1777 x /var/tmp; mkfifo {mallory}/said; cd /; "
        f"{user} /usr/bin/python3 {mallory}/claims.py {kind} {name} {pid} >{mallory}/said 2>{mallory}/log & claim=$!; "
        f'read -r word <{mallory}/said; [ "$word" = ready ] || {{ cat {mallory}/log >&2; exit 99; }}; sleep 0.3; "$@"; status=$?; '
        f"kill -KILL $claim 2>/dev/null; exit $status"
    )
    return ["unshare", "-m", "--propagation", "private", "bash", "-c", script, "bash"]


def cntr(prefix: list[str], *words: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER", "CONTAINER"))}
    return subprocess.run(
        [*prefix, *CNTR, *words],
        env={**environment, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture
def victim():
    """A process of root's, in no container."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.stdin.close()
    process.wait(10)


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_claim_to_a_process_of_roots(canary, mallory, victim, kind):
    name = f"web{secrets.token_hex(3)}"
    prefixed = [f"{engine}:{name}" for engine in ENGINES if kind.startswith(engine) or kind in ("shim", "linked")]
    for target in (name, *prefixed[:2]):
        (mallory / "said").unlink(missing_ok=True)
        done = cntr(beside(mallory, kind, name, victim.pid), "exec", target, "--", "cat", canary.path)
        assert done.returncode != 99, done
        assert canary.secret not in done.stdout, done
        assert done.returncode in (125, 126, 127), done
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["docker", "crun", "runc", "podman"])
def test_a_claim_to_a_container_of_another(accomplice, canary, place, mallory, kind):
    """Not the host's, but another's container is what the name is made to mean: root's secrets go to it."""
    name = f"web{secrets.token_hex(3)}"
    with kit.hostile(place, accomplice) as container:
        done = cntr(beside(mallory, kind, name, container.pid), "cp", canary.path, f"{name}:/stolen")
        assert done.returncode == 125, done
        assert not (container.root / "stolen").exists()


@pytest.mark.parametrize("kind", ["bombs", "silent"])
@pytest.mark.parametrize(
    "words", [("ps",), ("ps", "--json"), ("exec", "nowhere", "--", "true"), ("inspect", "nowhere"), ("doctor",)]
)
def test_what_a_user_writes_costs_little(mallory, kind, words):
    """Time, memory, and words that still make sense."""
    script = (
        "import os,resource,subprocess,sys,time; t=time.monotonic(); p=subprocess.run(sys.argv[1:], stdin=0, timeout=25); "
        "print('COST', time.monotonic()-t, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(p.returncode)"
    )
    prefix = [*beside(mallory, kind, "web", 1), sys.executable, "-c", script]
    started = time.monotonic()
    done = cntr(prefix, *words, seconds=60)
    cost = re.search(r"COST ([\d.]+) (\d+)", done.stderr)
    assert cost, (done, time.monotonic() - started)
    assert done.returncode in (0, 1, 125), done
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert float(cost[1]) < 12
    assert int(cost[2]) < 400 << 10, "KiB of memory"
