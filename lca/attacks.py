"""Byzantine clients: what they do to their labels and to their updates.

Which rows are Byzantine is always a mask `[n]`, never a position.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lca import geometry
from lca.typing import Updates

Boost = float | Literal['replace', 'n']


class Attack(NamedTuple):
  """What Byzantine clients do, on both sides of their training.

  Attributes:
    on_labels: `(labels [n, S], *, byzantine [n], client_ids [n], num_classes,
      key) -> labels`, before the training.
    on_updates: `(updates, *, byzantine [n], key) -> updates`, after it.
  """

  on_labels: Callable[..., jax.Array]
  on_updates: Callable[..., Updates]


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

  over_positions = jax.vmap(flip, in_axes=(0, None, 0))
  over_clients = jax.vmap(over_positions, in_axes=(0, 0, None))
  flipped = over_clients(labels, client_ids, jnp.arange(labels.shape[1]))
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
    boost = (n - attackers) / jnp.maximum(attackers, 1)
  elif boost == 'n':
    boost = n
  return geometry.scale(updates, jnp.where(byzantine, boost, 1.0))


def _keep_labels(labels, **_):
  return labels


def _keep_updates(updates, **_):
  return updates


NO_ATTACK = Attack(_keep_labels, _keep_updates)


def label_flipping(*, flip_fraction: float = 1.0, boost: Boost = 1.0) -> Attack:
  """Training on random labels; with a boost, model replacement.

  Args:
    flip_fraction: of the labels, see `flip_labels`.
    boost: of the updates, see `model_replacement`.

  Raises:
    ValueError: a fraction outside [0, 1], or an unknown boost.
  """
  if not 0 <= flip_fraction <= 1:
    raise ValueError(f'flip_fraction must lie in [0, 1], got {flip_fraction}')
  if isinstance(boost, str) and boost not in ('replace', 'n'):
    try:
      boost = float(boost)
    except ValueError:
      raise ValueError(
        f"boost must be a number, 'replace' or 'n', got {boost!r}"
      ) from None

  def on_labels(labels, **per_round):
    return flip_labels(labels, flip_fraction=flip_fraction, **per_round)

  def on_updates(updates, *, byzantine, key):
    del key  # nothing random is left to do
    return model_replacement(updates, byzantine=byzantine, boost=boost)

  return Attack(on_labels, on_updates)


ATTACKS = {'label_flipping': label_flipping}

POPULATION_KEYS = ('num_attackers', 'num_byzantine', 'sampled')


def make(config: Mapping[str, Any]) -> Attack:
  """Builds the attack that `config.attack` describes.

  Args:
    config: `name`, one of `ATTACKS` or `'none'`, and the attack's own keys.
      `POPULATION_KEYS` say who attacks, which is the simulation's business.

  Raises:
    ValueError: an unknown attack, or an option with an impossible value.
    TypeError: a key that the attack does not take.
  """
  keys = dict(config)
  name = keys.pop('name')
  if name == 'none':
    if keys:
      raise TypeError(
        f'attack.name is none, so that {sorted(keys)} do not apply: compose '
        'no preset of an attack'
      )
    return NO_ATTACK
  if name not in ATTACKS:
    raise ValueError(
      f'unknown attack {name!r}; there are {sorted([*ATTACKS, "none"])}'
    )
  own = {k: v for k, v in keys.items() if k not in POPULATION_KEYS}
  return ATTACKS[name](**own)
