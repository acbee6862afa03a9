"""POSIX and Linux behaviour as plain functions of a directory.

A check is a public function ``check_*(here)`` or ``check_*(here, behind)`` of a module in this
package: ``here`` is an empty directory (mode 0755, owned by root, every parent searchable) of the
filesystem under test; ``behind`` is the same directory, reached without passing through that
filesystem (on a plain directory: the same path). It returns if the filesystem is correct, raises
AssertionError or OSError if it is not, and ``Unsupported`` if the *backing* filesystem or the
kernel lacks what it tests.

To run them on any directory: python -m tests.fs.run_checks DIRECTORY [--behind DIRECTORY] [-k TEXT]
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path


class Check:
    """A check function and its name, ``module.function`` without the prefix."""

    def __init__(self, module: str, function: Callable[..., None]) -> None:
        self.name = f"{module}.{function.__name__.removeprefix('check_')}"
        self.function = function
        self.needs_behind = len(inspect.signature(function).parameters) == 2

    def __repr__(self) -> str:
        return self.name

    def run(self, here: Path, behind: Path) -> None:
        if self.needs_behind:
            self.function(here, behind)
        else:
            self.function(here)


def all_checks() -> list[Check]:
    """All checks, in the order of modules and lines."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        found += [
            Check(info.name, function)
            for name, function in vars(module).items()
            if name.startswith("check_") and function.__module__ == module.__name__
        ]
    return found
