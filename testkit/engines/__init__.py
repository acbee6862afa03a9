"""Real engines, started and stopped by the tests: see ``rigs``."""
