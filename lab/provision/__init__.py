"""What runs inside a machine: shell scripts for each engine, and the two programs they use."""
