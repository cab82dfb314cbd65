"""Label flipping, and model replacement, which multiplies trained updates."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks.base import Attack, keep_updates, replace
from lca.stacked import geometry
from lca.typing import Updates

Boost = float | Literal['replace', 'n']


def flip_labels(
  labels: jax.Array,
  *,
  byzantine: jax.Array,
  client_ids: jax.Array,
  num_classes: int,
  key: jax.Array,
  flip_fraction: float = 1.0,
) -> jax.Array:
  """Replaces labels of Byzantine clients by random labels.

  With more than two classes, a flipped label becomes one of the `num_classes -
  1` other labels, each with the same probability. With two classes it becomes
  either label with probability 1/2, as in the published code, so that half of
  the flipped labels stay right.

  A client's flips depend only on `key`, on its id and on the position of the
  example. They do not depend on the round, on the client's row or on padding.

  Args:
    labels: `[n, S]` integers.
    byzantine: `[n]` mask.
    client_ids: `[n]` integers.
    num_classes: number of classes; labels lie in `[0, num_classes)`.
    key: PRNG key, the same in every round of a run.
    flip_fraction: probability that a label is flipped.

  Returns:
    `[n, S]` labels in the dtype of `labels`.

  References:
    García-Márquez et al. 2025, section 4.2.
  """

  def flip(label, client_id, position):
    label_key = jax.random.fold_in(jax.random.fold_in(key, client_id), position)
    new_key, flip_key = jax.random.split(label_key)
    if num_classes == 2:
      new = jax.random.randint(new_key, (), 0, 2)
    else:
      step = jax.random.randint(new_key, (), 1, num_classes)
      new = (label + step) % num_classes
    return jnp.where(
      jax.random.uniform(flip_key) < flip_fraction, new, label
    ).astype(labels.dtype)

  # One vmap over all labels in a row, [n * S], compiles in half the time of a
  # vmap over clients of a vmap over examples.
  clients = jnp.broadcast_to(client_ids[:, None], labels.shape)
  positions = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)
  rows = (x.ravel() for x in (labels, clients, positions))
  flipped = jax.vmap(flip)(*rows).reshape(labels.shape)
  return jnp.where(byzantine[:, None], flipped, labels)


def model_replacement(
  updates: Updates, *, byzantine: jax.Array, boost: Boost
) -> Updates:
  r"""Model replacement: multiplies the Byzantine clients' updates (Eq. 3).

  .. math:: \hat V_{adv} = \beta (V_{adv} - V_G)

  Near convergence, honest updates are small. Under plain averaging, a single
  attacker with :math:`\beta = n` then replaces the server's model by its own.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    boost: :math:`\beta`. `'replace'` is the number of honest clients over the
      number of Byzantine clients in this round (the published code), `'n'` the
      number of clients (the paper's n / eta, with its eta of 1).

  Returns:
    Stacked updates.

  Raises:
    ValueError: `boost` is neither a finite number nor `'replace'` or `'n'`.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.model_replacement(jnp.ones(4),
    ...   byzantine=jnp.arange(4) == 1, boost='replace'))
    [1. 3. 1. 1.]

  References:
    Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020;
    García-Márquez et al. 2025, section 4.2.
  """
  boost = _checked_boost(boost)
  if isinstance(boost, float) and boost == 1:
    return updates  # without a copy
  n, attackers = len(byzantine), jnp.sum(byzantine)
  names = {'replace': (n - attackers) / jnp.maximum(attackers, 1), 'n': n}
  factor = names[boost] if isinstance(boost, str) else boost
  boosted = geometry.scale(updates, jnp.full(n, factor, jnp.float32))
  return replace(updates, byzantine, boosted)


def _checked_boost(boost: Boost) -> Boost:
  if isinstance(boost, str) and boost in ('replace', 'n'):
    return boost
  try:
    return options.number()('boost', boost)
  except ValueError:
    raise ValueError(
      f"boost must be a finite number, 'replace' or 'n', got {boost!r}"
    ) from None


def label_flipping(*, flip_fraction: float = 1.0, boost: Boost = 1.0) -> Attack:
  """Returns the attack of clients that train on random labels.

  With a boost other than 1, the attack is model replacement.

  Args:
    flip_fraction: probability that a label is flipped; see `flip_labels`.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: `flip_fraction` lies outside [0, 1], or `boost` is neither a
      finite number nor `'replace'` or `'n'`.

  Examples:
    >>> from lca import attacks
    >>> attack = attacks.label_flipping(flip_fraction=.5, boost='replace')
  """
  flip_fraction = options.number(0, 1)('flip_fraction', flip_fraction)
  boost = _checked_boost(boost)

  def on_labels(labels, *, byzantine, client_ids, num_classes, key, **numbers):
    return flip_labels(
      labels,
      byzantine=byzantine,
      client_ids=client_ids,
      num_classes=num_classes,
      key=key,
      flip_fraction=numbers.get('flip_fraction', flip_fraction),
    )

  def on_updates(updates, *, byzantine, **numbers):
    boost_now = numbers.get('boost', boost)
    return model_replacement(updates, byzantine=byzantine, boost=boost_now)

  numbers: dict[str, Any] = {'flip_fraction': flip_fraction}
  if boost == 1:
    return Attack(on_labels, keep_updates, numbers, reads='row')
  if isinstance(boost, float):
    numbers['boost'] = boost
    return Attack(on_labels, on_updates, numbers, reads='row')
  # A boost by name follows from the numbers of rows.
  return Attack(on_labels, on_updates, numbers, reads='coordinate')
