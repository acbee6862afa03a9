"""Real engines, started and ended by who uses them: see ``rigs``."""
