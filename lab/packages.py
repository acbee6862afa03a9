"""Builds the Debian package, wheel and source archive, and an image of tools: ``python -m lab.packages KIND…``.

    deb       dpkg-buildpackage and lintian in a clean room (cleanroom.py) of BUILD_SUITE, whose setuptools can read our pyproject.toml
    wheel     pip's wheel, and a source archive that holds tests and documents
    toolbox   an OCI archive by mmdebstrap(1) that holds cntr and the tools of TOOLS, for `docker load`, `podman load`, `ctr image import`

The results are in dist/.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from . import cleanroom

DIST = cleanroom.CHECKOUT / "dist"
BUILD_SUITE = "trixie"
BUILDERS = "build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools lintian"
# lintian's errors and warnings fail the build; its --pedantic tags are not enabled.
BUILD = f"""set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends {BUILDERS} >/dev/null
cp -r {cleanroom.ROOM_CHECKOUT} /tmp/cntr-attach-src && cd /tmp/cntr-attach-src && rm -rf .git
dpkg-buildpackage -us -uc -b >/tmp/build.log 2>&1 || {{ tail -50 /tmp/build.log; exit 1; }}
lintian --allow-root --fail-on error,warning --info ../cntr-attach_*.deb
mkdir -p /tmp/out && cp ../cntr-attach_*.deb /tmp/out/
"""
TOOLS = "bind9-dnsutils ca-certificates curl file gdb iproute2 iputils-ping less linux-perf lsof netcat-openbsd procps python3 strace "
TOOLS += "tcpdump vim-tiny"
NAME = "cntr-toolbox"


def deb() -> Path:
    """Build the Debian package. Raises SystemExit if the build or lintian fails."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    cleanroom.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deb-", dir=cleanroom.CACHE) as name:
        root = Path(name)
        root.chmod(0o755)
        cleanroom.furnish(root, BUILD_SUITE)
        if cleanroom.run_inside(root, BUILD, environment, []):
            raise SystemExit("packages: the Debian package was not built, or is not clean")
        (made,) = (root / "tmp/out").glob("*.deb")
        return _keep(made)


def _keep(made: Path) -> Path:
    DIST.mkdir(exist_ok=True)
    shutil.copy(made, DIST / made.name)
    print(f"packages: {DIST / made.name}: {made.stat().st_size / 1e6:.1f} MB", flush=True)
    return DIST / made.name


def toolbox() -> Path:
    """Build the image of tools, once per package. Raises CalledProcessError."""
    from . import mmdebstrap

    DIST.mkdir(exist_ok=True)
    package = current("deb")
    with tempfile.TemporaryDirectory(prefix="toolbox-", dir=cleanroom.CACHE) as name:
        work = Path(name)
        rootfs = work / "layer.tar"
        include = ",".join(TOOLS.split())
        clean = 'rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/usr/share/doc/*'
        options = ["--variant=minbase", f"--include={include}", f"--customize-hook=copy-in {package} /tmp"]
        options += [
            '--customize-hook=chroot "$1" sh -c "dpkg -i /tmp/cntr-attach_*.deb && rm /tmp/*.deb"',
            f"--customize-hook={clean}",
        ]
        command = mmdebstrap.command(options, BUILD_SUITE, str(rootfs), None)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "TMPDIR": name}
        subprocess.run([*command[:-1], command[-1]], check=True, env=environment)
        made = work / f"{NAME}.tar"
        oci_archive(rootfs, made, f"{NAME}:{package.name.split('_')[1].partition('-')[0]}")
        return _keep(made)


def oci_archive(layer: Path, target: Path, reference: str) -> None:
    """Write one layer as an OCI image (image-spec image-layout.md) that `docker load` accepts too (manifest.json)."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["/bin/bash"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "mmdebstrap"}],
    }
    blobs: dict[str, bytes] = {}

    def blob(document: object) -> tuple[str, int]:
        data = json.dumps(document, sort_keys=True).encode()
        key = hashlib.sha256(data).hexdigest()
        blobs[key] = data
        return key, len(data)

    def descriptor(kind: str, key: str, size: int) -> dict[str, object]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{key}", "size": size}

    config_key, config_size = blob(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config_key, config_size),
        "layers": [descriptor("layer.v1.tar", digest, layer.stat().st_size)],
    }
    key, size = blob(manifest)
    tag = reference.partition(":")[2]
    names = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": f"docker.io/library/{reference}"}
    index = {"schemaVersion": 2, "manifests": [{**descriptor("manifest.v1+json", key, size), "annotations": names}]}
    docker = [{"Config": f"blobs/sha256/{config_key}", "RepoTags": [reference], "Layers": [f"blobs/sha256/{digest}"]}]
    with tarfile.open(target, "w") as archive:
        files = {"oci-layout": {"imageLayoutVersion": "1.0.0"}, "index.json": index, "manifest.json": docker}
        for name, data in [*((name, json.dumps(value).encode()) for name, value in files.items()),
                           *((f"blobs/sha256/{name}", data) for name, data in blobs.items())]:  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo(f"blobs/sha256/{digest}")
        entry.size = layer.stat().st_size
        with layer.open("rb") as file:
            archive.addfile(entry, file)


def wheel() -> Path:
    """Wheel and source archive, by `python -m build`. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", DIST, cleanroom.CHECKOUT], check=True)
    return max(DIST.glob("*.whl"), key=os.path.getmtime)


# Each package is installed in a clean room and attaches to a container that the checkout there makes.
PROOF = """
import subprocess, sys
sys.path.insert(0, "{checkout}")
from testkit.container import SlimContainer
with SlimContainer("proof") as box:
    for words in (["attach", str(box.pid), "--", "sh", "-c", "test -f /var/lib/cntr/app && hostname"],
                  ["attach", str(box.pid), "--transport", "fuse", "--", "true"], ["ps"], ["cp", str(box.pid) + ":/app", "/tmp/app"]):
        done = subprocess.run([*sys.argv[1:], *words], capture_output=True, text=True)
        assert done.returncode == 0, (words, done)
"""
APT = "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && apt-get -qq install -y --no-install-recommends"
TRIALS = {  # kind → how it is installed in the room, and what is called then
    "deb": (
        f"{APT} {{file}} >/dev/null && test -d /var/lib/cntr && test -x /sbin/mount.fuse.cntrfs && test -x /usr/bin/kubectl-cntr"
        " && test -s /usr/share/man/man8/mount.fuse.cntrfs.8.gz -a -s /usr/share/zsh/vendor-completions/_cntr"
        " && zcat -f /usr/share/doc/cntr-attach/docs/howto.md* | grep -q cntr"
        " && test \"$(head -qn1 /usr/bin/cntr /usr/bin/kubectl-cntr /sbin/mount.fuse.cntrfs | sort -u)\" = '#!/usr/bin/python3 -I'",
        "cntr",
    ),
    "wheel": (
        f"{APT} python3-venv >/dev/null && python3 -m venv /opt/cntr && /opt/cntr/bin/pip install -q --no-index {{file}}"
        " && cd /opt/cntr/share && test -s man/man1/cntr.1 -a -s doc/cntr-attach/docs/howto.md -a -s fish/vendor_completions.d/cntr.fish"
        " && bash -n bash-completion/completions/cntr",
        "/opt/cntr/bin/cntr",
    ),
    "zipapp": ("cp {file} /usr/local/bin/cntr.pyz && chmod 755 /usr/local/bin/cntr.pyz", "cntr.pyz"),
    "toolbox": ("gdb --version >/dev/null && perf --version >/dev/null", "cntr"),
}


def current(kind: str) -> Path:
    """The package of KIND for the current commit, built if necessary."""
    noted = DIST / f"{kind}.json"
    head = subprocess.run(
        ["git", "-C", cleanroom.CHECKOUT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if noted.exists():
        commit, name = json.loads(noted.read_text())
        found = DIST / str(name)
        if commit == head and found.exists():
            return found
    made = MAKERS[kind]()
    noted.write_text(json.dumps([head, made.name]))
    return made


def trial(kind: str, suite: str) -> bool:
    """Install the package of KIND in a clean room of SUITE, and use it; return whether that worked."""
    made = current(kind)
    install, program = TRIALS[kind]
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}  # pip needs no index: cntr has no dependencies
    with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=cleanroom.CACHE) as name:
        root = Path(name)
        root.chmod(0o755)
        layer = unpacked(made) if kind == "toolbox" else None
        cleanroom.furnish(root, suite, layer)
        if layer:
            layer.unlink()
        shutil.copy(made, root / "tmp" / made.name)
        (root / "tmp/proof.py").write_text(PROOF.replace("{checkout}", cleanroom.ROOM_CHECKOUT))
        script = f"set -e; {install.format(file=f'/tmp/{made.name}')}; cd /; python3 /tmp/proof.py {program}"
        status = cleanroom.run_inside(root, script, environment, [])
    print(f"packages: {kind} on {suite}: {'PASS' if status == 0 else f'FAIL (exit status {status})'}", flush=True)
    return status == 0


def unpacked(image: Path) -> Path:
    """The layer of the image of tools, as a tar archive beside it."""
    layer = image.with_suffix(".layer.tar")
    with tarfile.open(image) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        with layer.open("wb") as file:
            shutil.copyfileobj(archive.extractfile(manifest[0]["Layers"][0]), file)  # type: ignore[arg-type]
    return layer


def zipapp() -> Path:
    """Build the one file."""
    DIST.mkdir(exist_ok=True)
    made = DIST / "cntr.pyz"
    subprocess.run([sys.executable, "-m", "cntr.remote.onefile", made], check=True, cwd=cleanroom.CHECKOUT)
    return made


MAKERS = {"deb": deb, "wheel": wheel, "zipapp": zipapp, "toolbox": toolbox}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.packages")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(MAKERS)} (default: all)")
    parser.add_argument(
        "--trial", action="append", metavar="SUITE", help="try each in a clean room of SUITE, too (repeatable)"
    )
    given = parser.parse_args()
    good = [trial(kind, suite) for suite in given.trial or () for kind in given.kinds or MAKERS]
    if not given.trial:
        for kind in given.kinds or MAKERS:
            current(kind)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
