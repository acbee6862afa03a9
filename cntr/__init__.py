"""cntr: your tools inside a slim container (Cntr: Lightweight OS Containers, USENIX ATC 2018)."""

__version__ = "0.1.0"
