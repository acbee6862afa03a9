"""What the user asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit.session import Session


class Request:
    """The options of one ``cntr attach`` or ``cntr exec``; see docs/cntr.1.md for their meaning."""

    def __init__(self, target: str, argv: list[str]) -> None:
        """The defaults of ``cntr attach``."""
        self.target, self.argv = target, argv
        self.tools = "host"
        self.transport = self.binding = "auto"
        self.read_only = self.privileged = self.verbose = self.force = False
        self.join_cgroup = True
        self.user: str | None = None
        self.environment: list[str] = []
        self.shares: list[str] = []
        # whether the session reaches these sockets of the caller's
        self.x11 = self.agent = self.bus = self.wayland = False
        self.forward = False  # whether `cntr forward` in the session reaches this machine's loopback
        self.sockets: list[str] = []  # other sockets, by path
        self.directory: str | None = (
            None  # the command's working directory; None: / in a session, the container's own for exec
        )
        self.network = ""  # network of a stand-in: none, host, container
        self.write = False  # write to the layer of a container that does not run
        self.entrypoint = False  # run: the container's or image's own entrypoint
        self.seccomp = False  # take the container's seccomp filters
        self.own_root = False  # exec: the container's own command in its own root
        self.protect: Callable[[], None] | None = None  # restarts cntr as ``tracers`` describes
        self.session: Session | None = None  # called before anything is entered, and at the end

    @property
    def uses_host(self) -> bool:
        """Whether the tools that run are this machine's, not a container's or a directory's."""
        return not self.own_root and self.tools in ("host", "host:all")
