"""How machines are made: by vagrant, by plain qemu, or in namespaces of this host."""

from __future__ import annotations

from .base import Driver, Endpoint, Plan

__all__ = ["Driver", "Endpoint", "Plan"]
