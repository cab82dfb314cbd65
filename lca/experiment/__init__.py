"""Experiments: from a config, or from parts, to a run and its directory."""
