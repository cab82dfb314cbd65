"""Byzantine clients that take other training steps than honest clients do."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.stacked import sums
from lca.stacked.row_statistics import kth_largest_magnitudes
from lca.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  r"""The local training of Byzantine clients.

  The first four options say how they train as any client does, and the others
  change their steps. w is the server's model, :math:`w_i` the client's, and g
  the gradient of a batch's mean loss.

  1. Gradient ascent: :math:`g \leftarrow -g`.
  2. Constrain-and-scale: :math:`g \leftarrow \alpha g + (1 - \alpha) \nabla
     L_{ano}(w_i)`. The anomaly term :math:`L_{ano}` is the cosine distance of
     :math:`w_i` and w, or their Euclidean distance.
  3. Neurotoxin: g is set to 0 except in the coordinates that honest clients use
     least: a share of all coordinates, those of smallest absolute value in the
     gradient of the client's clean examples at w, or in the last change of the
     server's model.
  4. The optimiser takes its step.
  5. Projected gradient descent: if :math:`\|w_i - w\|` exceeds a radius,
     :math:`w_i` moves along the line to w until it does not.

  Norms and distances are those of the parameters, without batch statistics. A
  subclass may override the methods, to train in yet another way.

  Attributes:
    optimizer: name of the attackers' optimiser, as `client.optimizer` has it;
      like all options, None trains as the honest clients do.
    learning_rate: step size of the attackers' optimiser.
    local_epochs: passes over the examples in a round.
    batch_size: examples in a batch.
    batch_share: the share of each batch, rounded to whole examples, that is
      poisoned; the rest are clean. The attack itself must then poison all
      examples. None takes a client's examples as the
      attack has changed them, and leaves the mix of a batch to chance.
    radius: of the ball around w that the model stays in.
    relative: True takes the radius in units of the norm of w.
    project: projects after every `'step'` or every `'epoch'`.
    keep: the share of the coordinates that Neurotoxin keeps, in (0, 1]. The
      papers' "top k %" is the share that it removes.
    keep_by: `'model'` ranks all coordinates together, `'leaf'` those of each
      array.
    keep_from: the numbers that it ranks: the `'gradient'` of the clean
      examples, or the `'last_change'` of the server's model (zeros in the first
      round of a run, when all coordinates are kept).
    alpha: weight of the loss in constrain-and-scale, in [0, 1].
    anomaly: `'cosine'` or `'euclidean'`.
    ascent: True goes up the loss.
    norm: the update is scaled to this norm at the end of a round.

  Raises:
    ValueError: an impossible value, or an option without the one that it
      belongs to.

  Examples:
    >>> from lca import attacks
    >>> attack = attacks.with_training(
    ...   attacks.badnets(share=1.0), local_epochs=6, learning_rate=0.05,
    ...   batch_share=20 / 64, keep=0.95)

  References:
    Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020
    (constrain-and-scale); Wang et al., Attack of the tails, NeurIPS 2020
    (projected gradient descent); Zhang et al., Neurotoxin: Durable backdoors in
    federated learning, ICML 2022.
  """

  optimizer: str | None = None
  learning_rate: float | None = None
  local_epochs: int | None = None
  batch_size: int | None = None
  batch_share: float | None = None
  radius: float | None = None
  relative: bool = False
  project: Literal['step', 'epoch'] = 'step'
  keep: float | None = None
  keep_by: Literal['model', 'leaf'] = 'model'
  keep_from: Literal['gradient', 'last_change'] = 'gradient'
  alpha: float | None = None
  anomaly: Literal['cosine', 'euclidean'] = 'cosine'
  ascent: bool = False
  norm: float | None = None

  def __post_init__(self):
    for name, check in _CHECKS.items():
      value = getattr(self, name)
      if value is not None:
        value = check(f'attack.training.{name}', value)
        object.__setattr__(self, name, value)
    for name, needed in _BELONGS_TO.items():
      value = getattr(self, name)
      if value != getattr(Training, name) and getattr(self, needed) is None:
        raise ValueError(
          f'attack.training.{name}={value!r} applies only with '
          f'attack.training.{needed}: set it, or leave {name} out'
        )

  @property
  def ranks_gradient(self) -> bool:
    """True if `kept` ranks a gradient of the clean examples."""
    return self.keep is not None and self.keep_from == 'gradient'

  @property
  def needs_last_change(self) -> bool:
    """True if `kept` ranks the last change of the server's model."""
    return self.keep is not None and self.keep_from == 'last_change'

  def kept(self, ranked: PyTree) -> PyTree | None:
    """Returns the masks of the coordinates in which the model may change.

    Args:
      ranked: the gradient or the change that is ranked, like the parameters.

    Returns:
      A tree of masks like the parameters; None for all coordinates.
    """
    share = self.keep
    if share is None:
      return None
    sizes = jax.tree.map(jnp.abs, ranked)
    if self.keep_by == 'leaf':
      return jax.tree.map(lambda x: x <= _smallest([x], share), sizes)
    limit = _smallest(jax.tree.leaves(sizes), share)
    return jax.tree.map(lambda x: x <= limit, sizes)

  def change_gradient(
    self, gradient: PyTree, params: PyTree, start: PyTree, kept: PyTree | None
  ) -> PyTree:
    """Returns the gradient that the optimiser is given.

    Args:
      gradient: of the batch's mean loss, like the parameters.
      params: the client's parameters.
      start: the server's parameters.
      kept: from the method `kept`.
    """
    if self.ascent:
      gradient = jax.tree.map(jnp.negative, gradient)
    if self.alpha is not None:
      alpha = self.alpha
      anomaly = _ANOMALY_GRADIENTS[self.anomaly](params, start)
      gradient = jax.tree.map(
        lambda g, a: alpha * g + (1 - alpha) * a, gradient, anomaly
      )
    if kept is not None:
      gradient = jax.tree.map(lambda g, m: jnp.where(m, g, 0), gradient, kept)
    return gradient

  def after(
    self, what: Literal['step', 'epoch'], params: PyTree, start: PyTree
  ) -> PyTree:
    """Returns the client's parameters as they go on after a step or an epoch.

    Args:
      what: `'step'` or `'epoch'`.
      params: the client's parameters.
      start: the server's parameters.
    """
    if self.radius is None or what != self.project:
      return params
    radius = self.radius
    if self.relative:
      radius *= _norm(start)
    moved = jax.tree.map(jnp.subtract, params, start)
    factor = jnp.minimum(1, _ratio(radius, _norm(moved)))
    return jax.tree.map(lambda w, x: w + factor * x, start, moved)

  def at_the_end(self, update: PyTree) -> PyTree:
    """Returns the update that the client sends.

    Args:
      update: the trained model minus the server's, all variables.
    """
    if self.norm is None:
      return update
    factor = _ratio(self.norm, _norm(update['params']))
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), update)


def _share(name, value):
  return options.positive(name, options.number(high=1)(name, value))


def _boolean(name, value):
  if not isinstance(value, bool):
    raise ValueError(f'{name} must be True or False, got {value!r}')
  return value


_CHECKS: dict[str, options.Check] = {
  'learning_rate': options.positive,
  'local_epochs': options.whole(1),
  'batch_size': options.whole(1),
  'batch_share': _share,
  'radius': options.positive,
  'project': options.one_of('step', 'epoch'),
  'keep': _share,
  'keep_by': options.one_of('model', 'leaf'),
  'keep_from': options.one_of('gradient', 'last_change'),
  'alpha': options.number(0, 1),
  'anomaly': options.one_of('cosine', 'euclidean'),
  'norm': options.positive,
  'relative': _boolean,
  'ascent': _boolean,
}
_BELONGS_TO = {
  'relative': 'radius',
  'project': 'radius',
  'keep_by': 'keep',
  'keep_from': 'keep',
  'anomaly': 'alpha',
}


def _smallest(sizes: list[jax.Array], share: float) -> jax.Array:
  """Returns the largest of a share of all sizes, the smallest ones."""
  count = sum(x.size for x in sizes)
  rank = count + 1 - max(round(share * count), 1)  # from the largest
  return kth_largest_magnitudes([x[None] for x in sizes], rank)[0]


def _norm(tree: PyTree) -> jax.Array:
  """Returns the norm of a tree, without overflow."""
  leaves = [x.astype(sums.wide(x.dtype)) for x in jax.tree.leaves(tree)]
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
  unit = jnp.where(largest > 0, largest, 1)
  return unit * jnp.sqrt(_product(leaves, leaves, unit))


def _product(one: PyTree, other: PyTree, unit: jax.Array | float = 1.0):
  """Returns the inner product of two trees in units of `unit`."""
  products = jax.tree.map(
    lambda x, y: jnp.sum((x / unit) * (y / unit)), one, other
  )
  return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def _ratio(x, y):
  """Returns x / y, and 1 if y is 0."""
  return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 1)


def _of_cosine_distance(params: PyTree, start: PyTree) -> PyTree:
  """Returns the gradient of 1 less the cosine of two models.

  It is exactly zero at the start, where rounding errors would otherwise become
  steps of an adaptive optimiser.
  """
  along = _ratio(_product(params, start), _product(params, params))
  size = _norm(params) * _norm(start)
  size = jnp.where(size > 0, size, 1)
  return jax.tree.map(lambda w, s: (along * w - s) / size, params, start)


def _of_euclidean_distance(params: PyTree, start: PyTree) -> PyTree:
  """Returns the gradient of the distance of two models; zero at the start."""
  moved = jax.tree.map(jnp.subtract, params, start)
  size = _norm(moved)
  size = jnp.where(size > 0, size, 1)
  return jax.tree.map(lambda x: x / size, moved)


_ANOMALY_GRADIENTS: dict[str, Callable[[PyTree, PyTree], PyTree]] = {
  'cosine': _of_cosine_distance,
  'euclidean': _of_euclidean_distance,
}
