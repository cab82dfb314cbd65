"""Public path of `lca.stacked.geometry`: Gram matrices, distances, mixtures."""

from lca.stacked.geometry import *  # noqa: F403
