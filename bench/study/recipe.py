"""What is in an image of the study, how it starts, how it is probed, and what else an honest user would do with it.

A step of a probe is a tuple: its kind, then what it takes (``probe`` has a function for each kind):

    ("http", PORT, PATH, TEXT)      a GET is answered with a status below 400 and TEXT is in the answer
    ("say", PORT, BYTES, BYTES)     what is sent over TCP, and what the answer holds; sent "" waits for a greeting
    ("exec", WORDS, TEXT)           a program of the container's own, what it prints holds TEXT
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """One image. hub: the name on Docker Hub that it stands for; setup: a shell script, run in the image's root when packages are there."""

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
