"""Type aliases of the public signatures."""

from typing import Any

import jax

PyTree = Any
"""A nest of dicts, lists, tuples and dataclasses with arrays as leaves."""

Updates = PyTree
"""A stacked pytree: every leaf is `[n, ...]`, one row per client."""

Update = PyTree
"""A pytree like `Updates` without the axis `n`: one update or an aggregate."""

Gram = jax.Array
"""`[n, n]` inner products of the clients' updates, in float32 or wider."""
