"""``cntr cp``: copying between this machine and a container.

Two ends: ``send`` walks a tree, ``receive`` builds one, ``stream`` is what they say to each other.

Both ends are the same code on either side; the one in the container runs in a process that has entered it (``cntr.cp.copy``), so
nothing here imports, prints or asks a name service after it has started. This module imports nothing.
"""
