"""A rig is a real engine of the tests' own, with the containers it makes. See ``rigs`` for its use."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from testkit.engines.workspaces import Workspace, unique


class EngineContainer:
    """A running container."""

    def __init__(self, rig: Rig, name: str, pid: int, *, id: str = "", rootfs: str = "", upper: str = "") -> None:
        self.rig: Any = rig  # of any subclass, whose additional attributes tests may use
        self.name, self.pid, self.id, self.rootfs, self.upper = name, pid, id or name, rootfs, upper
        self.target = f"{rig.engine}:{name}" if rig.engine != "pid" else str(pid)
        self.env = {**os.environ, **rig.settings}
        self.parts: list[EngineContainer] = []  # containers that this one needs, removed after it

    def use(self, monkeypatch: pytest.MonkeyPatch) -> EngineContainer:
        """Make the test process find the rig's engine."""
        for name, value in self.rig.settings.items():
            monkeypatch.setenv(name, value)
        return self

    def __enter__(self) -> EngineContainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.rig.remove(self)
        for part in self.parts:
            part.rig.remove(part)


class Rig:
    """A real engine of the tests' own. Subclasses define how it starts, and how it makes and removes a container."""

    engine = ""  # the prefix of the target: engine:name
    needs: dict[str, str] = {}  # command → Debian package  # noqa: RUF012
    variants: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Make the workspace and start the engine. Skips if a command is missing, naming the package."""
        missing = sorted({package for command, package in self.needs.items() if not shutil.which(command)})
        if os.geteuid() != 0:
            pytest.skip("needs root")
        if missing:
            pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
        self.workspace = Workspace()
        self.settings: dict[str, str] = {}
        try:
            self.start()
        except BaseException:
            self.workspace.close()
            raise

    def start(self) -> None:
        """Start the engine and import its images."""

    def container(self, variant: str = "busybox", *, name: str = "") -> EngineContainer:
        """A running container of VARIANT."""
        assert variant in self.variants, f"{type(self).__name__} has no {variant}"
        return self.make(variant, name or unique(variant.replace("_", "-")))

    def make(self, variant: str, name: str) -> EngineContainer:
        """Start the container."""
        raise NotImplementedError

    def remove(self, container: EngineContainer) -> None:
        """Remove the container, running or not."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop everything and leave nothing."""
        self.workspace.close()
