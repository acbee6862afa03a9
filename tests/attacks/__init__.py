"""Attacks on a session, each run for real: what a hostile container, or another user of the machine, would try."""
