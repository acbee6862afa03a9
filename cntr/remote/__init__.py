"""cntr where it is not installed: in one file, on other hosts, in a toolbox container."""
