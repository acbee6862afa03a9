"""How packages are made: the image's archive, and what must agree with pyproject.toml."""

from __future__ import annotations

import io
import os
import re
import runpy
import subprocess
import tarfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="the lab and the packages are made with Python 3.11 or newer")

from cntr import __version__, images
from cntr.cli import manual
from lab import packages

ROOT = Path(packages.__file__).parents[1]


def test_the_image_of_tools_can_be_verified(tmp_path):
    with tarfile.open(tmp_path / "layer.tar", "w") as layer:
        entry = tarfile.TarInfo("bin/tool")
        entry.size = 4
        layer.addfile(entry, io.BytesIO(b"tool"))
    packages.oci_archive(tmp_path / "layer.tar", tmp_path / "image.tar", "tools:1")
    (tmp_path / "tree").mkdir()
    with images.find(f"archive:{tmp_path}/image.tar") as image:
        assert image.config["Cmd"] == ["/bin/bash"]
        fd = os.open(tmp_path / "tree", os.O_RDONLY | os.O_DIRECTORY)
        image.unpack(fd)
        os.close(fd)
    assert (tmp_path / "tree/bin/tool").read_text() == "tool"
    with tarfile.open(tmp_path / "image.tar") as archive:  # for `docker load` before 25
        assert b'"RepoTags": ["tools:1"]' in archive.extractfile("manifest.json").read()


def test_versions_and_names_are_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    head = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert re.fullmatch(rf"{project['name']} \({re.escape(__version__)}-\d+\) unstable; urgency=medium", head)
    assert f"Package: {project['name']}\n" in (ROOT / "debian/control").read_text()


def test_every_kind_is_tried():
    assert set(packages.TRIALS) == set(packages.MAKERS)


def test_the_source_archive_holds_tests_documents_and_all_else_that_is_kept():
    """MANIFEST.in grafts each directory, except for those whose name begins with a dot."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: git ls-files lists what is kept")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    directories = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line and line[0] != "."}
    grafted = set(re.findall(r"^graft (\S+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE))
    assert {"tests", "docs"} <= grafted == directories - {"cntr"}


def test_a_wheel_brings_each_document_the_manual_and_completion(tmp_path):
    """setup.py says what goes below share/; `nox -s cleanroom -- packages` checks it when installed."""
    made = runpy.run_path(str(ROOT / "setup.py"))
    files = made["written"](tmp_path)
    assert all(file == f"{tmp_path}/{place}/{file.rpartition('/')[2]}" for place in files for file in files[place])
    assert (tmp_path / "share/man/man1/cntr.1").read_text() == manual.man_page()
    for shell, name in (("bash", "bash-completion/completions/cntr"), ("zsh", "zsh/site-functions/_cntr")):
        assert (tmp_path / "share" / name).read_text() == manual.completion(shell)
    pages = {path.relative_to(ROOT).as_posix() for pattern in ("*.md", "docs/*") for path in ROOT.glob(pattern)}
    documents = made["documents"]()
    assert {"README.md", "docs/howto.md"} <= {name for some in documents.values() for name in some} == pages
    for place, names in documents.items():  # links between them work
        assert {place.removeprefix("share/doc/cntr-attach").strip("/") or "."} == {
            os.path.dirname(n) or "." for n in names
        }
