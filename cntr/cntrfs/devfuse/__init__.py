"""The kernel's FUSE protocol on /dev/fuse, in pure Python: the default binding.

``wire`` is the protocol as a table, ``session`` the loop, ``namespace_ops`` and ``file_ops`` one handler per request,
``passthrough`` hands open files to the kernel, ``locks`` forwards locks to the backing file, ``watch`` tells the kernel
what changed behind the mount.
"""
