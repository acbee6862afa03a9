"""What tests and benches share: containers, engines and FUSE servers of one's own, and waiting for a condition."""
