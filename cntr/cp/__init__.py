"""``cntr cp``: copying between this machine and a container.

Two ends: ``send`` walks a tree, ``receive`` builds one, ``stream`` is the protocol between them.

Both directions use the same code. One end runs in a process that has entered the container (``cntr.cp.copy``), so
nothing here imports, prints or uses a name service once it has started. This module imports nothing.
"""
