"""Label flipping, and model replacement, which multiplies trained updates."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks.base import Attack, keep_updates, makes_attack, replace
from lca.stacked import geometry
from lca.typing import Updates

Boost = float | Literal['replace', 'n']

Relabel = Callable[[jax.Array, int, jax.Array], jax.Array]
"""A function `(labels [S], num_classes, keys [S]) -> labels` that flips all
labels, with a key for each."""


def other_labels(
  labels: jax.Array, num_classes: int, keys: jax.Array
) -> jax.Array:
  """Replaces labels by random labels.

  With more than two classes, a label becomes one of the `num_classes - 1` other
  labels, each with the same probability. With two classes it becomes either
  label with probability 1/2, as in the published code, so that half of the
  flipped labels stay right.

  Args:
    labels: `[S]` integers in [0, num_classes).
    num_classes: number of classes.
    keys: `[S]` PRNG keys.

  References:
    García-Márquez et al. 2025, section 4.2.
  """
  if num_classes == 2:
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, 2))(keys)
  steps = jax.vmap(lambda key: jax.random.randint(key, (), 1, num_classes))(
    keys
  )
  return (labels + steps) % num_classes


def flip_labels(
  labels: jax.Array,
  *,
  client_id: jax.Array | int,
  num_classes: int,
  key: jax.Array,
  flip_fraction: jax.Array | float = 1.0,
  relabel: Relabel = other_labels,
) -> jax.Array:
  """Replaces some labels of a client.

  A client's flips depend only on `key`, on its id and on the position of the
  example. They do not depend on the round or on padding.

  Args:
    labels: `[S]` integers in [0, num_classes).
    client_id: integer.
    num_classes: number of classes.
    key: PRNG key, the same in every round of a run.
    flip_fraction: probability that a label is flipped.
    relabel: makes the new labels.

  Returns:
    `[S]` labels in the dtype of `labels`.
  """
  new_keys, flipped = choose_examples(
    key, client_id, len(labels), flip_fraction
  )
  new = relabel(labels, num_classes, new_keys)
  return jnp.where(flipped, new, labels).astype(labels.dtype)


def choose_examples(
  key: jax.Array,
  client_id: jax.Array | int,
  size: int,
  share: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
  """Draws which examples of a client an attack changes.

  Args:
    key: PRNG key, the same in every round of a run.
    client_id: integer.
    size: number of examples, S.
    share: probability that an example is chosen.

  Returns:
    A key for each example, `[S]`, and the `[S]` mask of the chosen ones. Both
    depend on the position of an example, and not on S.
  """
  client_key = jax.random.fold_in(key, client_id)

  def choose(position):
    own_key, share_key = jax.random.split(
      jax.random.fold_in(client_key, position)
    )
    return own_key, jax.random.uniform(share_key) < share

  return jax.vmap(choose)(jnp.arange(size))


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


def training_attack(
  on_examples: Callable[..., tuple[jax.Array, jax.Array]],
  boost: Boost,
  numbers: dict[str, Any],
  on_test: Callable[..., Any] | None = None,
) -> Attack:
  """Returns the attack of clients that train on other examples.

  Args:
    on_examples, on_test: see `Attack`.
    boost: factor of the updates; see `model_replacement`.
    numbers: see `Attack.numbers`, without the boost.

  Raises:
    ValueError: `boost` is neither a finite number nor `'replace'` or `'n'`.
  """
  boost = _checked_boost(boost)

  def on_updates(updates, *, byzantine, **numbers):
    boost_now = numbers.get('boost', boost)
    return model_replacement(updates, byzantine=byzantine, boost=boost_now)

  if boost == 1:
    return Attack(on_examples, keep_updates, numbers, 'row', on_test)
  if isinstance(boost, float):
    numbers = numbers | {'boost': boost}
    return Attack(on_examples, on_updates, numbers, 'row', on_test)
  # A boost by name follows from the numbers of rows.
  return Attack(on_examples, on_updates, numbers, 'coordinate', on_test)


@makes_attack
def label_flipping(*, flip_fraction: float = 1.0, boost: Boost = 1.0) -> Attack:
  """Returns the attack of clients that train on random labels.

  With a boost other than 1, the attack is model replacement.

  Args:
    flip_fraction: probability that a label is flipped; see `other_labels`.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: `flip_fraction` lies outside [0, 1], or `boost` is neither a
      finite number nor `'replace'` or `'n'`.

  Examples:
    >>> from lca import attacks
    >>> attack = attacks.label_flipping(flip_fraction=.5, boost='replace')
  """
  return _flipping(other_labels, flip_fraction, boost)


@makes_attack
def flip_complement(
  *, flip_fraction: float = 1.0, boost: Boost = 1.0
) -> Attack:
  """Returns the attack of clients whose label y becomes C - 1 - y.

  Args:
    flip_fraction: probability that a label is flipped.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: see `label_flipping`.

  References:
    Allen-Zhu et al., Byzantine-resilient non-convex stochastic gradient
    descent, ICLR 2021.
  """
  return _flipping(lambda y, c, keys: c - 1 - y, flip_fraction, boost)


@makes_attack
def flip_next(*, flip_fraction: float = 1.0, boost: Boost = 1.0) -> Attack:
  """Returns the attack of clients whose label y becomes (y + 1) mod C.

  Args:
    flip_fraction: probability that a label is flipped.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: see `label_flipping`.
  """
  return _flipping(lambda y, c, keys: (y + 1) % c, flip_fraction, boost)


@makes_attack
def flip_source(
  *,
  source: int = 0,
  target: int = 1,
  flip_fraction: float = 1.0,
  boost: Boost = 1.0,
) -> Attack:
  """Returns the attack of clients that label one class as another.

  The attack success rate is the share of the source's test examples for which
  the model predicts the target.

  Args:
    source: class whose labels are flipped.
    target: label that they get.
    flip_fraction: probability that such a label is flipped.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: see `label_flipping`; or the data have no such class.

  References:
    Tolpegin et al., Data poisoning attacks against federated learning systems,
    ESORICS 2020.
  """

  check_flip(source, target)

  def relabel(labels, num_classes, keys):
    check_classes(num_classes, source=source, target=target)
    return jnp.where(labels == source, target, labels)

  def on_test(inputs, labels, *, num_classes, **_):
    check_classes(num_classes, source=source, target=target)
    return inputs, jnp.full_like(labels, target), labels == source

  return _flipping(relabel, flip_fraction, boost, on_test)


@makes_attack
def flip_mapping(
  *,
  mapping: Sequence[int],
  flip_fraction: float = 1.0,
  boost: Boost = 1.0,
) -> Attack:
  """Returns the attack of clients whose label y becomes `mapping[y]`.

  Args:
    mapping: the new label of each class.
    flip_fraction: probability that a label is flipped.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: see `label_flipping`; or the mapping does not have an entry for
      each class, or names a class that the data do not have.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> attack = attacks.flip_mapping(mapping=(0, 2, 1))
    >>> _, labels = attack.on_examples(
    ...   None, jnp.arange(3), client_id=0, num_classes=3,
    ...   key=jax.random.key(0))
    >>> print(labels)
    [0 2 1]
  """

  def relabel(labels, num_classes, keys):
    if len(mapping) != num_classes:
      raise ValueError(
        f'mapping must have an entry for each of {num_classes} classes, got '
        f'{tuple(mapping)}'
      )
    for new in mapping:
      check_classes(num_classes, mapping=new)
    return jnp.asarray(mapping)[labels]

  return _flipping(relabel, flip_fraction, boost)


def check_flip(source: int | None, target: int) -> None:
  """Checks that a label changes.

  Raises:
    ValueError: source and target are the same class.
  """
  if source == target:
    raise ValueError(
      f'source and target must be different classes, got {target} for both'
    )


def check_classes(num_classes: int, **labels: int) -> None:
  """Checks that the data have some classes.

  Args:
    num_classes: number of classes.
    **labels: options with a class each, by name.

  Raises:
    ValueError: a class is no integer in [0, num_classes).
  """
  for name, label in labels.items():
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
      raise ValueError(
        f'{name} must be an integer of at least 0, got {label!r}'
      )
    if label >= num_classes:
      raise ValueError(
        f'{name} must be a class of the data, an integer in [0, {num_classes})'
        f', got {label}'
      )


def _flipping(
  relabel: Relabel,
  flip_fraction: float,
  boost: Boost,
  on_test: Callable[..., Any] | None = None,
) -> Attack:
  """Returns the attack of clients that train on the labels of `relabel`."""
  flip_fraction = options.number(0, 1)('flip_fraction', flip_fraction)

  def on_examples(inputs, labels, *, client_id, num_classes, key, **numbers):
    return inputs, flip_labels(
      labels,
      client_id=client_id,
      num_classes=num_classes,
      key=key,
      flip_fraction=numbers.get('flip_fraction', flip_fraction),
      relabel=relabel,
    )

  numbers = {'flip_fraction': flip_fraction}
  return training_attack(on_examples, boost, numbers, on_test)
