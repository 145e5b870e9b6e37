"""Frozen values that rooms hand to each other, a file per subject."""
