"""What a server logs without importing `logging`, at which time, and where it cannot."""

from __future__ import annotations

import subprocess
import sys

from tests.rules import source


def said(script: str) -> str:
    """The stderr of a fresh interpreter."""
    line = f"import sys; from cntr.cntrfs import log\n{script}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", line], cwd=source.ROOT, capture_output=True, text=True, check=True
    )
    return done.stderr


def test_what_nobody_asked_for_imports_nothing() -> None:
    assert said("log.info('%d words', 3); assert 'logging' not in sys.modules") == ""


def test_a_warning_is_printed_at_once() -> None:
    assert said("log.warning('%d words', 3)") == "3 words\n"


def test_a_configured_logger_gets_everything() -> None:
    listening = "import logging; logging.basicConfig(level=logging.INFO, format='%(name)s %(levelname)s %(message)s')"
    assert said(f"{listening}; log.info('%d words', 3)") == "cntr.cntrfs INFO 3 words\n"


def test_an_error_shows_where_it_came_from() -> None:
    text = said("try: 1 / 0\nexcept ZeroDivisionError as error: log.error('a request', exc_info=error)")
    assert text.startswith("a request\nTraceback")
    assert text.endswith("ZeroDivisionError: division by zero\n")


def test_a_server_without_a_free_fd_still_prints_it() -> None:
    exhausted = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    text = said(f"{exhausted}\nlog.error('request %d', 7, exc_info=OSError(24, 'Too many open files'))")
    assert text == "cntrfs: ERROR: request 7 (OSError: [Errno 24] Too many open files)\n"
