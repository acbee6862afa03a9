"""Tests of cntr/images."""
