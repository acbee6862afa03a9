"""An event loop and joined sockets: what ``cntr forward`` and the caller's sockets in a session have in common."""
