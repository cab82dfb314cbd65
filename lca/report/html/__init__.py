"""Writes runs and sweeps as HTML pages that need no other file."""
