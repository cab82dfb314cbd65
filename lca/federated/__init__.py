"""The simulator: clients train, some attack, and a server aggregates."""
