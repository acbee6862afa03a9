"""A host with its own journal and policy, and a container to attach to."""

from __future__ import annotations

import pytest

from tests.audit.support import AuditedHost
from tests.nest import busybox


@pytest.fixture
def place(tmp_path):
    return AuditedHost(tmp_path / "run")


@pytest.fixture(scope="module")
def container():
    with busybox.BusyboxContainer("audited") as made:
        yield made
