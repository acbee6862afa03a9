"""The study: images after Docker Hub's most used, built from Debian packages, slimmed, loaded, run and probed."""
