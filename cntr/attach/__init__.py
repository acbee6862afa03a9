"""One attach: the walk, and the processes of a session (docs/architecture.md)."""
