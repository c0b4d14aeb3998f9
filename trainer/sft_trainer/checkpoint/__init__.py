"""Committed checkpoints: staged, hashed, fenced, renamed; see docs/checkpoints.md."""
