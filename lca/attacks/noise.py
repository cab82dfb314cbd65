"""Attacks that need no other client's update: noise, constants, NaN."""

import re
from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.aggregators import layer_names
from lca.attacks.base import draw_rows, replace, update_attack
from lca.typing import Update, Updates


@update_attack(
  'row', sigma=options.number(0), mu=options.number(), layers=options.pattern
)
def gaussian(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  positions: jax.Array | None = None,
  sigma: float,
  mu: float = 0.0,
  layers: str | None = None,
) -> Updates:
  r"""Sends Gaussian noise, drawn independently for each Byzantine client.

  .. math:: \hat x_b \sim \mathcal{N}(\mu, \sigma^2 I)

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: PRNG key.
    positions: `[n]` positions of the rows in the round, if they are some of its
      rows; None if they are all.
    sigma: standard deviation, at least 0.
    mu: mean of every coordinate.
    layers: regular expression that is searched in the paths of the leaves, such
      as `'params/Conv_0/bias'`. Only leaves that match are replaced by noise;
      the others stay what the client computed. None matches all leaves.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `sigma` is negative, `layers` is no regular expression, or it
      matches no leaf.

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
  matching = [
    i
    for i, path in enumerate(paths)
    if layers is None or re.search(layers, path)
  ]
  if not matching:
    raise ValueError(
      f'layers={layers!r} matches no leaf; the paths of the leaves are {paths}'
    )

  def row(k, own, numbers):
    del k, own  # the distribution is the same in all leaves
    return mu + sigma * numbers

  noisy = draw_rows(
    [leaves[i] for i in matching],
    byzantine,
    key,
    jax.random.normal,
    row,
    positions,
  )
  for i, leaf in zip(matching, noisy, strict=True):
    leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)


@update_attack('row', scale=options.number(0))
def layer_gaussian(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  positions: jax.Array | None = None,
  scale: float = 1.0,
) -> Updates:
  r"""Sends Gaussian noise with the moments of each layer of the own update.

  .. math:: \hat x_b^{(l)} \sim \mathcal{N}(\mu_b^{(l)}, (c\,
      \sigma_b^{(l)})^2 I)

  where :math:`\mu_b^{(l)}` and :math:`\sigma_b^{(l)}` are mean and standard
  deviation of the entries of layer l of what the client has trained. No norm
  and no distance tells such a layer from a trained one.

  Args:
    updates: stacked pytree, leaves `[n, ...]`. A layer is a leaf.
    byzantine: `[n]` mask.
    key: PRNG key.
    positions: see `gaussian`.
    scale: c, at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `scale` is negative or not finite.
  """
  leaves, structure = jax.tree.flatten(updates)

  def row(k, own, numbers):
    del k
    own = own.astype(numbers.dtype)
    return jnp.mean(own) + scale * jnp.std(own) * numbers

  drawn = draw_rows(leaves, byzantine, key, jax.random.normal, row, positions)
  return jax.tree.unflatten(structure, drawn)


@update_attack('row', noise=options.number(0))
def free_rider(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  last_change: Update | None = None,
  positions: jax.Array | None = None,
  delta: bool = True,
  noise: float = 1e-4,
) -> Updates:
  r"""Sends a made-up update, to receive the model without any training.

  With `delta`, the client sends the last change of the server's model, which
  looks like an update, and adds normal noise:

  .. math:: \hat x_b \sim \mathcal{N}(w_t - w_{t-1}, \eta^2 I)

  Without it, the entries are uniform in :math:`[-\eta, \eta]`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: PRNG key.
    last_change: :math:`w_t - w_{t-1}`, like one update; zeros in the first
      round of a run. A simulation passes it; `delta=False` does not need it.
    positions: see `gaussian`.
    delta: True sends the last change.
    noise: :math:`\eta`, at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `noise` is negative or not finite.
    TypeError: `delta` is True, and there is no `last_change`.

  References:
    Lin, Du and Liu, Free-riders in federated learning: attacks and defenses,
    2019 (random weights, and delta weights with and without noise).
  """
  if delta and last_change is None:
    raise TypeError('free_rider with delta=True needs last_change, got None')
  change = jax.tree.leaves(last_change)

  def row(k, own, numbers):
    del own
    return noise * numbers + (change[k].astype(numbers.dtype) if delta else 0)

  def uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1)

  leaves, structure = jax.tree.flatten(updates)
  sample = jax.random.normal if delta else uniform
  drawn = draw_rows(leaves, byzantine, key, sample, row, positions)
  return jax.tree.unflatten(structure, drawn)


@update_attack('row')
def zero(
  updates: Updates, *, byzantine: jax.Array, key: jax.Array | None = None
) -> Updates:
  """Sends zeros, as a free rider that receives the model without training.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.

  Returns:
    Stacked updates.
  """
  return _constant(updates, byzantine, 0)


@update_attack('row', value=options.number())
def constant(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  value: float,
) -> Updates:
  """Sends the same number in all coordinates.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    value: the number; must be finite.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `value` is not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.constant(jnp.array([1., 2., 3.]),
    ...   byzantine=jnp.arange(3) == 1, value=-5.))
    [ 1. -5.  3.]

  References:
    Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019
    (the same-value attack).
  """
  return _constant(updates, byzantine, value)


@update_attack('row', value=options.one_of('nan', 'inf', '-inf'))
def non_finite(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  value: Literal['nan', 'inf', '-inf'] = 'nan',
) -> Updates:
  """Sends NaN or an infinity in all coordinates.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    value: `'nan'`, `'inf'` or `'-inf'`.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `value` is none of these words.
  """
  return _constant(updates, byzantine, float(value))


def _constant(updates, byzantine, value):
  rows = jax.tree.map(lambda x: jnp.full(x.shape[1:], value, x.dtype), updates)
  return replace(updates, byzantine, rows)
