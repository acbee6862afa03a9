"""What the packages are made by: the image's archive, and what must be equal to pyproject.toml."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tomllib
from pathlib import Path

from cntr import __version__, images
from lab import packages

ROOT = Path(packages.__file__).parents[1]


def test_the_image_of_tools_is_one_that_is_verified(tmp_path):
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
