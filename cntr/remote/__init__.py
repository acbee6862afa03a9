"""cntr where it is not installed: in one file, on other machines by ssh."""
