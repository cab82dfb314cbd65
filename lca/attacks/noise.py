"""Rows that know nothing of the honest ones: noise, constants, no numbers."""

import re
from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.aggregators import layer_names
from lca.attacks.base import draw_rows, replace, update_attack
from lca.typing import Updates


@update_attack(
  sigma=options.number(0), mu=options.number(), layers=options.pattern
)
def gaussian(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  sigma: float,
  mu: float = 0.0,
  layers: str | None = None,
) -> Updates:
  r"""Every Byzantine client sends noise of its own.

  .. math:: \hat x_b \sim \mathcal{N}(\mu, \sigma^2 I)

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: a PRNG key.
    sigma: the deviation, at least 0.
    mu: the mean of every coordinate.
    layers: a regular expression, searched in the paths of the leaves, such as
      `'params/Conv_0/bias'`. The others stay what the client computed. None is
      all leaves.

  Returns:
    Stacked updates.

  Raises:
    ValueError: a negative sigma, no regular expression, or one that no leaf's
      path matches.

  Examples:
    >>> import jax, jax.numpy as jnp
    >>> from lca import attacks
    >>> updates = {'bias': jnp.ones((3, 1)), 'kernel': jnp.ones((3, 2))}
    >>> print(attacks.gaussian(updates, byzantine=jnp.arange(3) == 1,
    ...   key=jax.random.key(0), mu=7., sigma=0., layers='kern')['kernel'])
    [[1. 1.]
     [7. 7.]
     [1. 1.]]

  References:
    Blanchard et al., Machine learning with adversaries: Byzantine tolerant
    gradient descent, NeurIPS 2017; Xie et al., Generalized Byzantine-tolerant
    SGD, 2018; Varma et al., LEGATO, 2021, section V (`sigma` 20 to 200).
  """
  leaves, structure = jax.tree.flatten(updates)
  paths = layer_names(updates)
  chosen = [
    i
    for i, path in enumerate(paths)
    if layers is None or re.search(layers, path)
  ]
  if not chosen:
    raise ValueError(f'layers={layers!r} is found in none of {paths}')

  def row(k, numbers):
    del k  # all leaves alike
    return mu + sigma * numbers

  drawn = [leaves[i] for i in chosen]
  rows = draw_rows(drawn, byzantine, key, jax.random.normal, row)
  for i, leaf in zip(chosen, rows, strict=True):
    leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)


@update_attack()
def zero(
  updates: Updates, *, byzantine: jax.Array, key: jax.Array | None = None
) -> Updates:
  """Byzantine clients send zeros: they ride along and learn the model.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.

  Returns:
    Stacked updates.
  """
  return _constant(updates, byzantine, 0)


@update_attack(value=options.number())
def constant(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  value: float,
) -> Updates:
  """Byzantine clients send one number in all coordinates.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    value: the number, finite.

  Returns:
    Stacked updates.

  Raises:
    ValueError: a value that is not finite.

  References:
    Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019
    (the same-value attack).
  """
  return _constant(updates, byzantine, value)


@update_attack(value=options.one_of('nan', 'inf', '-inf'))
def non_finite(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  value: Literal['nan', 'inf', '-inf'] = 'nan',
) -> Updates:
  """Byzantine clients send what is no number, or none that is finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    value: in all coordinates.

  Returns:
    Stacked updates.

  Raises:
    ValueError: another value.
  """
  return _constant(updates, byzantine, float(value))


def _constant(updates, byzantine, value):
  rows = jax.tree.map(lambda x: jnp.full(x.shape[1:], value, x.dtype), updates)
  return replace(updates, byzantine, rows)
