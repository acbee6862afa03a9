"""What the user asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit.session import Session


class Request:
    """The words of one ``cntr attach`` or ``cntr exec``; see the CLI contract for each option's meaning."""

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
        self.x11 = self.agent = self.bus = self.wayland = False  # sockets of the caller's that the session reaches
        self.forward = False  # `cntr forward` in the session reaches this machine's loopback
        self.sockets: list[str] = []  # and others, by their paths
        self.directory: str | None = (
            None  # where the command starts; None: / of a session, the container's own for exec
        )
        self.network = ""  # of a stand-in: none, host, container
        self.write = False  # into the layer of a container that does not run
        self.entrypoint = False  # run: what the container or image would run itself
        self.seccomp = False  # take the container's seccomp filters
        self.own_root = False  # exec: the container's own command in its own root
        self.protect: Callable[[], None] | None = None  # goes on as ``tracers`` says
        self.session: Session | None = None  # asked before anything is entered, and told of the end

    @property
    def uses_host(self) -> bool:
        """Whether the programs that run are this machine's, and no container's or directory's."""
        return not self.own_root and self.tools in ("host", "host:all")
