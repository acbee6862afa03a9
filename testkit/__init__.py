"""Shared by tests and benchmarks: private containers, engines and FUSE servers, and waiting for a condition."""
