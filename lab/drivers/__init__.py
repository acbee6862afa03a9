"""How a machine comes to be: vagrant, plain qemu, or this host itself."""

from __future__ import annotations

from .base import Driver, Endpoint, Plan

__all__ = ["Driver", "Endpoint", "Plan"]
