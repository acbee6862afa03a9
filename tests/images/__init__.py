"""Tests of the room for images."""
