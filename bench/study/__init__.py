"""The study: images modelled on Docker Hub's most used, built from Debian packages, slimmed, loaded, run and probed."""
