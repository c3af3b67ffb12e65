"""Deltas made small, added up and merged."""
