"""Engines that other packages add, by the entry point group ``cntr.engines``."""

from __future__ import annotations

import os
import sys

from cntr.engines import trust
from cntr.engines.registry import REGISTRY, Entry, listed
from cntr.linux import procfs


def entries() -> tuple[Entry, ...]:
    """The registry, and what third parties added by entry point; for root only what nobody but root
    can have installed.
    """
    extra = []
    # importlib.metadata takes 30 ms, glob 10. Listing the directories and reading the entry points
    # takes at most 1 ms.
    for path in dict.fromkeys([*sys.path, os.path.dirname(os.path.dirname(os.path.dirname(__file__)))]):
        for directory in listed(path):
            if directory.endswith(".dist-info"):
                file = f"{path or os.getcwd()}/{directory}/entry_points.txt"
                try:
                    text = procfs.read(file)
                    if "[cntr.engines]" in text and trust.accepts(trust.owner(file)):
                        extra += _declared(text, path)
                except OSError:
                    continue
    return REGISTRY + tuple(extra)


def _declared(text: str, path: str) -> list[Entry]:
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == "cntr.engines" and "=" in line:
            name, module = (part.strip() for part in line.split("=", 1))
            if module not in sys.modules:
                _import(module, path)
            found.append(Entry(name, module, module, *sys.modules[module].TRACES))
    return found


def _import(module: str, path: str) -> None:
    """Import MODULE from PATH, where its entry point was found: other directories of sys.path may have one of that
    name. Raises OSError.
    """
    head = module.partition(".")[0]
    for file in (f"{path}/{head}.py", f"{path}/{head}/__init__.py"):
        if os.path.exists(file) and trust.accepts(trust.owner(file)):
            break
    else:
        raise FileNotFoundError(2, "no module that only root, or the caller, could have written", f"{path}/{head}")
    sys.path.insert(0, path)
    try:
        __import__(module)
    finally:
        sys.path.remove(path)
