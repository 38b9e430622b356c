"""Tests of directions, edits and direction fitting."""
