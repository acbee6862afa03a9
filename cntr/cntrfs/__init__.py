"""CntrFS, a FUSE filesystem: serves one tree into another mount namespace.

Section 4 of the paper.

One synchronous core (``nodes``, ``backing``, ``core``, ``files``) that knows no binding; two bindings: ``devfuse``
speaks the kernel's protocol on /dev/fuse itself, ``pyfuse3_binding`` is the well-kept library. This module imports
nothing, so that importing it costs an attach nothing.

Serving a mount made elsewhere (attach's fuse transport)
--------------------------------------------------------
The host side opens ``/dev/fuse`` (``mounting.open_device()``) and the root of the fat side's tree, and forks. The child
enters the target's mount namespace and mounts there, before it enters a user namespace (the kernel demands that the
opener of the fd and the mounter share one)::

    mounting.mount(fuse_fd, "cntr", where, MS_NOSUID…)

mount(2) returns at once; the first access waits for the server. A *server process* of the host side, single-threaded,
serves it until the last user is gone or ``stop_fd`` becomes readable::

    from cntr.cntrfs import mounting
    from cntr.cntrfs.options import Options
    mounting.serve(fuse_fd, root_fd, Options(...).settle(), stop_fd, heartbeat, on_ready, binding=None)

- fuse_fd, root_fd: taken over. No other process may keep a copy of fuse_fd: the kernel ends the connection when the
  last one is closed, and that is what frees every client when the server dies.
- heartbeat: a ``heartbeat.Heartbeat()`` made before the fork, for ``watchdog.Watchdog`` in the supervisor; may be None.
- on_ready: called once, in the server, when the kernel's INIT was answered.
- the server process must not touch the tree it serves, and sets its own umask to 0, its RLIMIT_NOFILE to the hard
  limit, and SIGXFSZ and SIGPIPE to ignored.
"""
