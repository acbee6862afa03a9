"""``cntr forward``: ports and sockets of a container on this machine, and of this machine in a container.

One process relays all bytes in one epoll loop (``proxy.loop``, ``proxy.stream``, ``datagrams``). It never enters a namespace: a
*dialer*, a child that holds nothing else, makes the sockets in the container's network namespace and passes them back
(``dialer``).
"""
