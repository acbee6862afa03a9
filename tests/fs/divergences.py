"""Where CntrFS may differ from the native tree in the state machine, each with a reason.

A result divergence names the call and both errnos (0 = success); a tree divergence names a field,
and may compare both values.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ResultDivergence:
    """CALL may answer MOUNTED where the native tree answers NATIVE (errno numbers, 0 for success)."""

    calls: frozenset[str]
    native: frozenset[int]
    mounted: frozenset[int]
    bindings: frozenset[str]
    reason: str


@dataclass(frozen=True)
class TreeDivergence:
    """FIELD may differ where ALLOWED(native value, mounted value)."""

    fields: frozenset[str]
    bindings: frozenset[str]
    reason: str
    allowed: Callable[[object, object], bool] = field(default=lambda native, mounted: True)


BOTH = frozenset(("pyfuse3", "devfuse"))
PYFUSE3 = frozenset(("pyfuse3",))

RESULTS: tuple[ResultDivergence, ...] = (
    ResultDivergence(
        frozenset(("fallocate",)),
        frozenset((0, errno.EINVAL, errno.ENODEV, errno.EBADF, errno.EFBIG, errno.ENOTSUP)),
        frozenset((errno.ENOTSUP,)),
        PYFUSE3,
        "pyfuse3 has no fallocate",
    ),
)

TREE: tuple[TreeDivergence, ...] = (
    TreeDivergence(
        frozenset(("atime", "atime moved")),
        BOTH,
        "what the kernel answers from its cache does not reach the backing file: an atime may stay behind, never run ahead",
        lambda native, mounted: native == "now" or native is True,
    ),
)


def result_allowed(binding: str, call: str, native: object, mounted: object) -> bool:
    """Whether these two answers ("value"/"errno", …) may differ."""
    binding = binding.partition("-")[0]
    numbers = [answer[1] if answer[0] == "errno" else 0 for answer in (native, mounted)]  # type: ignore[index]
    if numbers[0] == numbers[1]:
        return False
    return any(
        call in row.calls and numbers[0] in row.native and numbers[1] in row.mounted and binding in row.bindings
        for row in RESULTS
    )


def tree_allowed(binding: str, field_name: str, native: object, mounted: object) -> bool:
    """Whether this field of a name may differ."""
    binding = binding.partition("-")[0]
    return any(field_name in row.fields and binding in row.bindings and row.allowed(native, mounted) for row in TREE)
