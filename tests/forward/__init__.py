"""Ports and sockets: ``cntr forward``."""
