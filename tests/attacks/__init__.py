"""Real attacks on a session, as a hostile container or another user of the machine would try them."""
