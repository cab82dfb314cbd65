"""Convolutions and pooling in the forms that are fast on each backend."""
