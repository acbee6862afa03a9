"""What a container was started with: environment and working directory, from its engine's files.

Used if the process has overwritten its environment (setproctitle, nginx), as /proc/PID/environ then shows.
"""

from __future__ import annotations

from cntr.engines import store
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container

LIMIT = 1 << 20  # bytes of a config.json, usually a few ten thousand


def of(container: Container) -> tuple[dict[str, str], str] | None:
    """(environment, working directory); None if the engine does not tell, or its files are not readable."""
    if container.settings is None and container.spec:
        try:
            with VIEW:
                text = store.read(container.spec, owner=container.owner, limit=LIMIT)
            process = store.parse(text)["process"]
            rows = (str(row).partition("=") for row in process.get("env") or [])
            container.settings = {key: value for key, _, value in rows if key}, str(process.get("cwd") or "/")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            container.spec = ""
    return container.settings
