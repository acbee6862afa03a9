"""``cntr slim``: its parts on small trees, and the whole of it on a busybox image."""
