"""What a rig is: a real engine of the tests' own, and the containers (boxes) it makes. See ``rigs`` for how to use them."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from testkit.engines.rigging import Den, unique


class Box:
    """A running container."""

    def __init__(self, rig: Rig, name: str, pid: int, *, id: str = "", rootfs: str = "", upper: str = "") -> None:
        self.rig: Any = rig  # of whatever kind: what it offers beside ``Rig`` is its own
        self.name, self.pid, self.id, self.rootfs, self.upper = name, pid, id or name, rootfs, upper
        self.target = f"{rig.engine}:{name}" if rig.engine != "pid" else str(pid)
        self.env = {**os.environ, **rig.settings}
        self.parts: list[Box] = []  # containers this one needs, removed after it

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Box:
        """Make the test's own process find the rig's engine."""
        for name, value in self.rig.settings.items():
            monkeypatch.setenv(name, value)
        return self

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *error: object) -> None:
        self.rig.remove(self)
        for part in self.parts:
            part.rig.remove(part)


class Rig:
    """A real engine of the test's own. Subclasses say how it starts and how it makes and removes a container."""

    engine = ""  # the prefix of the target: engine:name
    needs: dict[str, str] = {}  # command → Debian package  # noqa: RUF012
    variants: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Make the den and start the engine. Skips, naming the package, where a command is missing."""
        missing = sorted({package for command, package in self.needs.items() if not shutil.which(command)})
        if os.geteuid() != 0:
            pytest.skip("needs root")
        if missing:
            pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
        self.den = Den()
        self.settings: dict[str, str] = {}
        try:
            self.start()
        except BaseException:
            self.den.close()
            raise

    def start(self) -> None:
        """Start the engine and import its images."""

    def box(self, variant: str = "busybox", *, name: str = "") -> Box:
        """A running container of VARIANT."""
        assert variant in self.variants, f"{type(self).__name__} has no {variant}"
        return self.make(variant, name or unique(variant.replace("_", "-")))

    def make(self, variant: str, name: str) -> Box:
        """Start the container."""
        raise NotImplementedError

    def remove(self, box: Box) -> None:
        """Remove the container, running or not."""
        raise NotImplementedError

    def stop(self) -> None:
        """End everything and leave nothing."""
        self.den.close()
