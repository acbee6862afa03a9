"""What an image of the study contains, how it starts, how it is probed, and how else it would be used.

A step of a probe is a tuple of its kind and arguments (``probe`` has a function for each kind):

    ("http", PORT, PATH, TEXT)      a GET is answered with a status below 400, and the answer contains TEXT
    ("say", PORT, BYTES, BYTES)     what is sent over TCP, and what the answer contains; sent "" waits for a greeting
    ("exec", WORDS, TEXT)           a program of the container's own, whose output contains TEXT
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """One image. hub: its model on Docker Hub; setup: a shell script, run in the image's root after package
    installation.
    """

    name: str
    hub: str
    packages: str
    command: list[str]
    probe: tuple[Step, ...]
    held_back: tuple[Step, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    setup: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    build_packages: str = ""  # for setup only; not in the image
