"""Attacks on the labels, and what carries them: flips and replacement."""

from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks.base import Attack, replace
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
  """Replaces labels of Byzantine clients by random ones.

  With more than two classes a flipped label is a random *other* one, uniformly
  over the `num_classes - 1`; with two classes it is a fair coin, as in the
  published code. A client's flips are its own: they depend on `key` and its
  id, not on the round, the row it stands in or the padding.

  Args:
    labels: `[n, S]` integers.
    byzantine: `[n]` mask.
    client_ids: `[n]` integers.
    num_classes: labels lie in `[0, num_classes)`.
    key: the same in every round of a run.
    flip_fraction: the chance of each label to be flipped.

  Returns:
    `[n, S]` labels.

  References:
    García-Márquez et al. 2025, section 4.2.
  """

  def flip(label, client_id, position):
    own = jax.random.fold_in(jax.random.fold_in(key, client_id), position)
    which, whether = jax.random.split(own)
    if num_classes == 2:
      other = jax.random.randint(which, (), 0, 2)
    else:
      step = jax.random.randint(which, (), 1, num_classes)
      other = (label + step) % num_classes
    return jnp.where(
      jax.random.uniform(whether) < flip_fraction, other, label
    ).astype(labels.dtype)

  # All labels in one row, which compiles in half the time.
  clients = jnp.broadcast_to(client_ids[:, None], labels.shape)
  positions = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)
  rows = (x.ravel() for x in (labels, clients, positions))
  flipped = jax.vmap(flip)(*rows).reshape(labels.shape)
  return jnp.where(byzantine[:, None], flipped, labels)


def model_replacement(
  updates: Updates, *, byzantine: jax.Array, boost: Boost
) -> Updates:
  r"""Multiplies the Byzantine clients' updates (Eq. 3).

  .. math:: \hat V_{adv} = \beta (V_{adv} - V_G)

  Under averaging with enough honest clients near convergence, :math:`\beta =
  n` puts one attacker's model in the place of the server's.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    boost: beta. `'replace'` is honest / Byzantine clients of this round (the
      published code), `'n'` the number of clients (the text's n / eta, with
      its eta of 1).

  Returns:
    Stacked updates.

  References:
    Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020;
    García-Márquez et al. 2025, section 4.2.
  """
  if boost == 1:
    return updates  # and spare their copy
  n, attackers = len(byzantine), jnp.sum(byzantine)
  if boost == 'replace':
    factor = (n - attackers) / jnp.maximum(attackers, 1)
  else:
    factor = n if boost == 'n' else boost
  boosted = geometry.scale(updates, jnp.full(n, factor, jnp.float32))
  return replace(updates, byzantine, boosted)


def label_flipping(*, flip_fraction: float = 1.0, boost: Boost = 1.0) -> Attack:
  """Training on random labels; with a boost, model replacement.

  Args:
    flip_fraction: of the labels, see `flip_labels`.
    boost: of the updates, see `model_replacement`.

  Raises:
    ValueError: a fraction outside [0, 1], or an unknown boost.
  """
  flip_fraction = options.number(0, 1)('flip_fraction', flip_fraction)
  if boost not in ('replace', 'n'):
    try:
      boost = options.number()('boost', boost)
    except ValueError:
      raise ValueError(
        f"boost must be a finite number, 'replace' or 'n', got {boost!r}"
      ) from None

  def on_labels(labels, **per_round):
    return flip_labels(labels, flip_fraction=flip_fraction, **per_round)

  def on_updates(updates, *, byzantine, key=None, aggregate=None):
    del key, aggregate  # nothing is left to draw or to find out
    return model_replacement(updates, byzantine=byzantine, boost=boost)

  return Attack(on_labels, on_updates)
