"""The public path of `lca.stacked.geometry`."""

from lca.stacked.geometry import *  # noqa: F403
