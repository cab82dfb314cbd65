"""One client's part of a round: its training, its gradient, its momentum.

Clients hold different numbers of examples, in arrays padded to the same length
`S`. Padding never changes a result: the last batch of an epoch is short, as in
a DataLoader, and a client with fewer steps stops when it is done.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from lca.data import ClientData
from lca.typing import PyTree, Updates

LossFn = Callable[
  [PyTree, jax.Array, jax.Array, jax.Array, jax.Array],
  tuple[jax.Array, PyTree],
]
"""Losses of a batch, and what a step changes beside the parameters.

`(variables, inputs [b, ...], labels [b], keys [b], mask [b]) -> (losses [b],
updated)`, where `updated` holds the collections of variables that have changed,
such as `batch_stats`, in which rows outside the mask do not count.
"""

_NOISE = 2**32 - 1  # folded in for what is random in the loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalGradient:
  """A client's part of a round of federated SGD: minus one batch's gradient.

  Attributes:
    losses: of a batch, per example.
    batch_size: in examples; a client that holds fewer takes them all.
    microbatch_size: a step sums the gradients of at most so many examples at a
      time, in parts as even as can be. Smaller ones need less memory and, on
      CPUs, less time: they stay in the cache, and a short last batch costs no
      more than it must. None takes the batch as a whole, as a model with batch
      statistics must: they are the whole batch's. It changes a result by
      rounding alone.
    update_dtype: of the update that it sends, such as `'bfloat16'`, which
      halves what the server stores of all clients; None is the variables'.
  """

  losses: LossFn
  batch_size: int
  microbatch_size: int | None = None
  update_dtype: DTypeLike | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, int) and value < 1:
        raise ValueError(f'{field.name} must be at least 1, got {value}')

  def __call__(
    self, variables: PyTree, data: ClientData, key: jax.Array
  ) -> tuple[PyTree, jax.Array]:
    """Returns what one client sends.

    Args:
      variables: the server's, a Flax dict with `'params'`.
      data: one client's: inputs `[S, ...]`, labels `[S]`, num_examples `[]`.
      key: decides what is drawn.

    Returns:
      The update, client minus server, and the mean training loss `[]` over the
      examples seen. A client without examples returns zeros.
    """
    order = shuffled(key, len(data.labels), data.num_examples)
    stop = jnp.minimum(self.batch_size, data.num_examples)
    loss, grads, updated = self.loss_and_gradient(
      variables, data, key, order, 0, stop
    )
    seen = jnp.maximum(stop, 1)
    minus = jax.tree.map(lambda g: -g / seen, grads)
    zeros = jax.tree.map(jnp.zeros_like, variables)
    moved = jax.tree.map(
      lambda new, old: jnp.where(stop > 0, new - old, 0),
      updated,
      {name: variables[name] for name in updated},
    )
    update = self.as_sent({**zeros, **moved, 'params': minus})
    return update, loss / seen

  def as_sent(self, tree: PyTree) -> PyTree:
    """Returns a tree like the variables in the dtype of an update."""
    return jax.tree.map(lambda x: x.astype(self.update_dtype or x.dtype), tree)

  def loss_and_gradient(self, variables, data, key, order, start, stop):
    """Sums over the examples `order[start:stop]`; returns what else changes."""
    most = min(self.batch_size, len(order))
    parts = -(-most // (self.microbatch_size or most))
    size = -(-most // parts)  # as even as the parts can be
    noise = jax.random.fold_in(key, _NOISE)

    def loss(params, positions):
      rows = order[jnp.minimum(positions, len(order) - 1)]
      losses, updated = self.losses(
        {**variables, 'params': params},
        data.inputs[rows],
        data.labels[rows],
        jax.vmap(functools.partial(jax.random.fold_in, noise))(positions),
        # Of no examples there would be no statistics to normalise with.
        positions < jnp.maximum(stop, start + 1),
      )
      return jnp.sum(jnp.where(positions < stop, losses, 0)), updated

    def part(i, totals):
      positions = start + i * size + jnp.arange(size)
      (total, updated), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params'], positions
      )
      return jax.tree.map(jnp.add, totals, (total, grads)), updated

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, variables['params'])
    if parts == 1:
      totals, updated = part(0, zeros)
      return *totals, updated
    if 'batch_stats' in variables:
      raise ValueError(
        'a model with batch statistics takes its batch as a whole, but '
        f'microbatch_size={self.microbatch_size} splits its {most} examples'
      )
    num_parts = -(-(stop - start) // size)
    totals = lax.fori_loop(0, num_parts, lambda i, t: part(i, t)[0], zeros)
    return *totals, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalTraining(LocalGradient):
  """A client's part of a round: epochs of its own training.

  García-Márquez et al. 2025, section 2.1.

  Attributes:
    optimizer: fresh in every round; `batch_size` is of its steps.
    local_epochs: passes over the client's data, each in a new random order.
  """

  optimizer: optax.GradientTransformation
  local_epochs: int

  def __call__(
    self, variables: PyTree, data: ClientData, key: jax.Array
  ) -> tuple[PyTree, jax.Array]:
    """As in `LocalGradient`."""

    def epoch(i, carry):
      own = jax.random.fold_in(key, i)
      order = shuffled(own, len(data.labels), data.num_examples)
      step = functools.partial(self._step, data, own, order)
      num_steps = -(-data.num_examples // self.batch_size)
      return lax.fori_loop(0, num_steps, step, carry)

    opt_state = self.optimizer.init(variables['params'])
    start = (variables, opt_state, jnp.zeros(()))
    trained, _, loss = lax.fori_loop(0, self.local_epochs, epoch, start)
    seen = jnp.maximum(data.num_examples * self.local_epochs, 1)
    update = jax.tree.map(jnp.subtract, trained, variables)
    return self.as_sent(update), loss / seen

  def _step(self, data, key, order, i, carry):
    variables, opt_state, total = carry
    start = i * self.batch_size
    stop = jnp.minimum(start + self.batch_size, data.num_examples)
    loss, grads, updated = self.loss_and_gradient(
      variables, data, key, order, start, stop
    )
    grads = jax.tree.map(lambda g: g / (stop - start), grads)
    updates, opt_state = self.optimizer.update(
      grads, opt_state, variables['params']
    )
    params = optax.apply_updates(variables['params'], updates)
    variables = {**variables, **updated, 'params': params}
    return variables, opt_state, total + loss


def with_momentum(
  momenta: Updates, updates: Updates, client_ids: jax.Array, momentum: float
) -> tuple[Updates, Updates]:
  r"""Worker momentum: what a client sends is a mean over its rounds.

  .. math:: m_i \leftarrow \beta m_i + (1 - \beta) x_i

  Args:
    momenta: stacked `[num_clients, ...]`, zeros before the first round.
    updates: stacked `[n, ...]`, of this round's clients.
    client_ids: `[n]`, who they are; `num_clients` is nobody.
    momentum: :math:`\beta`.

  Returns:
    The new momenta of all clients, and this round's `[n, ...]`, in the updates'
    dtypes.

  References:
    Karimireddy, He and Jaggi, Learning from history for Byzantine robust
    optimization, ICML 2021.
  """
  sent = jax.tree.map(
    lambda m, x: momentum * m[client_ids] + (1 - momentum) * x,
    momenta,
    updates,
  )
  momenta = jax.tree.map(
    lambda m, x: m.at[client_ids].set(x, mode='drop'), momenta, sent
  )
  return momenta, jax.tree.map(lambda s, x: s.astype(x.dtype), sent, updates)


def shuffled(key: jax.Array, size: int, count: ArrayLike) -> jax.Array:
  """Returns a random order of `range(count)`, then the rest of `range(size)`.

  The order does not depend on `size`: every position has a random number of
  its own, whatever the length of the array it stands in.
  """
  positions = jnp.arange(size)
  draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(
    positions
  )
  return jnp.lexsort((draws, positions >= count))
