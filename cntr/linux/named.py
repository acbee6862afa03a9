"""``typing.NamedTuple`` without typing, which would take a third of the file server's import time."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Named(type):
        def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, object]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, members)
            made = namedtuple(name, list(members["__annotations__"]), module=members["__module__"])
            for key, value in members.items():
                if key == "__doc__" or not key.startswith("__"):
                    setattr(made, key, value)
            return made

    #: The base class: the annotations of a derived class are its fields, without defaults.
    NamedTuple = _Named("NamedTuple", (), {})


__all__ = ["NamedTuple"]
