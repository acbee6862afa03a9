"""``cntr slim``: its parts on small trees, and the whole command on a busybox image."""
