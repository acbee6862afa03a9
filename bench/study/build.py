"""Builds the study's images: a Debian base, a layer of packages, a layer for the application, in an archive that
engines load.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.study.recipe import Recipe
from bench.study.recipes import BY_NAME
from cntr.slim import writer
from cntr.slim.tree import Tree

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The official image's way to keep apt's archives and indexes out (debuerreotype's docker-clean).
CLEAN = (
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };\n'
    'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\nAcquire::Languages "none";\n'
)
INSTALL = "apt-get -qq install -y --no-install-recommends"


def base(place: Path) -> Path:
    """The root directory of Debian bookworm's minbase, made once. place: the study's directory."""
    root = place / "base"
    if (place / "base.done").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    archive = place / "base.tar"
    # The hook avoids usrmerge, which would bring 60 MB of Perl that no official image has.
    words = [
        "--variant=minbase",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        "--include=ca-certificates,usr-is-merged",
    ]
    subprocess.run(["mmdebstrap", *words, "bookworm", str(archive)], check=True)
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
    archive.unlink()
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    (place / "update").mkdir(exist_ok=True)
    _run(place, str(root), place / "update", "apt-get -qq update")
    shutil.rmtree(place / "update")
    (place / "base.done").touch()
    return root


def layers(place: Path, recipe: Recipe) -> list[Path]:
    """The directories of the recipe's layers, base first, in the form of overlay's upper directories."""
    root = base(place)
    work = place / "layers" / recipe.name
    if (work / "done").exists():
        return [Path(line) for line in (work / "done").read_text().split("\n")]
    shutil.rmtree(work, ignore_errors=True)
    packages, application, scratch = work / "packages", work / "application", work / "scratch"
    for directory in (packages, application, scratch):
        directory.mkdir(parents=True)
    lower = str(root)
    if recipe.packages:
        _run(place, lower, packages, f"{INSTALL} {recipe.packages}")
        lower = f"{packages}:{lower}"
    only_build = recipe.build_packages.removeprefix("SCRATCH ")
    if recipe.setup and only_build:
        tools = work / "tools"
        tools.mkdir()
        _run(place, lower, tools, f"{INSTALL} {only_build}")
        lower = f"{tools}:{lower}"
    for name, text in recipe.files.items():
        path = application / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if (application / "tmp").exists():
        (application / "tmp").chmod(0o1777)
    if recipe.setup:
        _run(place, lower, application, recipe.setup)
    found = [root, packages, application] if recipe.packages else [root, application]
    if recipe.build_packages.startswith("SCRATCH"):
        found = [application]
        shutil.rmtree(application / "tmp", ignore_errors=True)
    shutil.rmtree(work / "tools", ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    (work / "done").write_text("\n".join(map(str, found)))
    return found


def _run(place: Path, lower: str, upper: Path, script: str) -> None:
    """Run SCRIPT in the root made of LOWER; changes go to UPPER. apt's indexes and archives stay outside."""
    work, root = upper.parent / "work", upper.parent / "root"
    for directory in (work, root, place / "archives/partial", place / "lists/partial"):
        directory.mkdir(parents=True, exist_ok=True)
    mounts = [
        f"mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {root}",
        f"mount --bind {place}/lists {root}/var/lib/apt/lists",
        f"mount --bind {place}/archives {root}/var/cache/apt/archives",
        f"mount -t proc proc {root}/proc",
        f"mount --bind /etc/resolv.conf {root}/etc/resolv.conf 2>/dev/null || true",
        *(f"mount --bind /dev/{name} {root}/dev/{name}" for name in ("null", "urandom", "random", "zero")),
        f"exec env -i PATH={PATH} DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot {root} sh -ec '{script}'",
    ]
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", "\n".join(mounts)]
    log = upper.parent / "log"
    with open(log, "ab") as stream:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False)
    shutil.rmtree(work, ignore_errors=True)
    root.rmdir()
    if done.returncode:
        raise SystemExit(f"{script}: exit status {done.returncode}\n{log.read_text(errors='replace')[-2000:]}")
    for path in (
        upper / "var/cache/ldconfig/aux-cache",
        upper / "var/log/dpkg.log",
        upper / "var/log/alternatives.log",
    ):
        path.unlink(missing_ok=True)
    shutil.rmtree(upper / "var/log/apt", ignore_errors=True)
    for path in (upper / "etc/resolv.conf",):
        if path.exists() and not stat.S_ISCHR(os.lstat(path).st_mode):
            path.unlink()


def archive(place: Path, recipe: Recipe) -> Path:
    """The recipe's image as an archive for every engine, with the reference ``study/NAME:1``."""
    path = place / f"{recipe.name}.tar"
    if path.exists():
        return path
    directories = layers(place, recipe)
    environment = [f"PATH={PATH}"]
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": environment, "Cmd": recipe.command, **recipe.config},
        "history": [{"created_by": line} for line in _history(recipe, len(directories))],
    }
    work = place / f"{recipe.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    blobs = []
    for directory in directories:
        blobs.append(_base_blob(place) if directory == place / "base" else _blob(directory, work))
    with open(path.with_suffix(".part"), "wb") as stream:
        writer.Archive(str(work), config, blobs, "none").write(stream, f"localhost/study/{recipe.name}:1")
    shutil.rmtree(work)
    path.with_suffix(".part").rename(path)
    return path


def _blob(directory: Path, work: Path) -> writer.Blob:
    tree = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)).scan()
    try:
        _without_whiteouts(tree, directory)
        return writer.layer(tree, tree.entries, {}, str(work), "none")
    finally:
        tree.close()


def _base_blob(place: Path) -> writer.Blob:
    """The base's layer, shared by all images and made once."""
    kept = place / "base.blob"
    facts = kept / "facts"
    if not facts.exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        blob = _blob(place / "base", kept)
        facts.write_text(f"{blob.digest} {blob.size}")
    digest, size = facts.read_text().split()
    return writer.Blob(str(kept / digest), digest, int(size), digest, int(size))


def _history(recipe: Recipe, count: int) -> list[str]:
    lines = ["/bin/sh -c #(nop) ADD file:base in /", f"RUN {INSTALL} {recipe.packages}", "COPY . / # buildkit"]
    return ["COPY server / # buildkit"] if count == 1 else lines if count == 3 else [lines[0], lines[2]]


def _without_whiteouts(tree: Tree, directory: Path) -> None:
    """Check that no recipe removes files: in an upper layer a removed file is a device, which has another form in an
    archive.
    """
    gone = [p for p, entry in tree.entries.items() if stat.S_ISCHR(entry.mode) and not entry.rdev]
    if gone:
        raise SystemExit(f"{directory}: the recipe removes files of a lower layer: {gone}")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(name, archive(Path(sys.argv[1]), BY_NAME[name]), flush=True)
