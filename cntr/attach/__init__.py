"""One session: the walk from a name to a running command, and the processes that take part."""
