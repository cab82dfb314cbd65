"""A client's part of a round: local training, one gradient, or momentum.

Clients hold different numbers of examples, in arrays that are padded to the
same length `S`. Padding never changes a result. The last batch of an epoch is
shorter, as in a PyTorch DataLoader, and a client with fewer examples takes
fewer steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from lca.data import ClientData
from lca.federated.optimizer import AnyOptimizer, numbers_of, with_numbers
from lca.typing import PyTree, Updates

LossFn = Callable[
  [PyTree, jax.Array, jax.Array, jax.Array, jax.Array],
  tuple[jax.Array, PyTree],
]
"""A function that computes the losses of a batch of b examples.

`(variables, inputs [b, ...], labels [b], keys [b], mask [b]) -> (losses [b],
updated)`. `updated` holds the collections of variables beside the parameters
that the batch has changed, such as `batch_stats`. Rows outside the mask do not
affect `updated`.
"""

_NOISE = 2**32 - 1  # folded into the key of dropout and other noise in a loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalGradient:
  """A client's part of federated SGD: sends minus the gradient of one batch.

  Attributes:
    losses: computes the losses of a batch.
    batch_size: examples in a batch. A client with fewer examples takes all.
    microbatch_size: the largest number of examples whose gradients are computed
      at once. A batch is split into microbatches of nearly equal size, and
      their gradients are summed. Small microbatches need less memory. They are
      faster on CPUs, because they stay in cache and a short last batch costs
      less. None does not split the batch. With batch statistics, which are
      those of a whole batch, a batch must not be split. Without them, splitting
      changes the result only by rounding.
    update_dtype: dtype of the update to send, such as `'bfloat16'`, which
      halves the memory of all clients' updates on the server. None keeps the
      dtypes of the variables.

  Raises:
    ValueError: a number is below 1.
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

  @property
  def numbers(self) -> dict[str, Any]:
    """Numbers that a compiled program takes as arguments, by name."""
    return {}

  def with_numbers(self, numbers: dict[str, Any]) -> 'LocalGradient':
    """Returns the same part with other values of `numbers`."""
    del numbers  # there are none
    return self

  def __call__(
    self, variables: PyTree, data: ClientData, key: jax.Array
  ) -> tuple[PyTree, jax.Array]:
    """Computes one client's update.

    Args:
      variables: the server's model, a Flax dict with `'params'`.
      data: the client's examples: inputs `[S, ...]`, labels `[S]`, num_examples
        `[]`.
      key: PRNG key for the order of examples and for noise in the loss.

    Returns:
      The update, client minus server, and the mean training loss `[]` over the
      examples used, in nats. Both are 0 for a client without examples.
    """
    order = shuffled(key, len(data.labels), data.num_examples)
    stop = jnp.minimum(self.batch_size, data.num_examples)
    loss, grads, updated = self.loss_and_gradient(
      variables, data, key, order, 0, stop
    )
    num_used = jnp.maximum(stop, 1)
    minus_mean = jax.tree.map(lambda g: -g / num_used, grads)
    zeros = jax.tree.map(jnp.zeros_like, variables)
    # Other collections, such as batch statistics, are sent as differences.
    changes = jax.tree.map(
      lambda new, old: jnp.where(stop > 0, new - old, 0),
      updated,
      {name: variables[name] for name in updated},
    )
    update = self.to_update_dtype({**zeros, **changes, 'params': minus_mean})
    return update, loss / num_used

  def to_update_dtype(self, tree: PyTree) -> PyTree:
    """Casts a tree like the variables to the dtype of updates."""
    return jax.tree.map(lambda x: x.astype(self.update_dtype or x.dtype), tree)

  def loss_and_gradient(self, variables, data, key, order, start, stop):
    """Sums the loss and its gradient over the examples `order[start:stop]`.

    Args:
      variables: the model, a Flax dict with `'params'`.
      data: the client's examples.
      key: PRNG key for noise in the loss.
      order: `[S]` positions of the examples, from `shuffled`.
      start: first position in `order`.
      stop: end of the batch in `order`, at most `batch_size` after `start`.

    Returns:
      The sum of the losses, the gradient of this sum with respect to
      `'params'`, and the collections that the batch has changed; none if the
      batch is split into microbatches.

    Raises:
      ValueError: `microbatch_size` would split a batch whose statistics belong
        to the whole batch.
    """
    largest_batch = min(self.batch_size, len(order))
    num_parts = -(-largest_batch // (self.microbatch_size or largest_batch))
    part_size = -(-largest_batch // num_parts)  # nearly equal parts
    noise_key = jax.random.fold_in(key, _NOISE)

    def loss(params, positions):
      rows = order[jnp.minimum(positions, len(order) - 1)]
      losses, updated = self.losses(
        {**variables, 'params': params},
        data.inputs[rows],
        data.labels[rows],
        # A key for each position: noise does not depend on the microbatches.
        jax.vmap(functools.partial(jax.random.fold_in, noise_key))(positions),
        # An empty batch has no statistics to normalise with, so the mask keeps
        # at least one example; the loss below still leaves it out.
        positions < jnp.maximum(stop, start + 1),
      )
      return jnp.sum(jnp.where(positions < stop, losses, 0)), updated

    def add_part(i, totals):
      positions = start + i * part_size + jnp.arange(part_size)
      (total, updated), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params'], positions
      )
      return jax.tree.map(jnp.add, totals, (total, grads)), updated

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, variables['params'])
    if num_parts == 1:
      totals, updated = add_part(0, zeros)
      return *totals, updated
    if 'batch_stats' in variables:
      raise ValueError(
        f'microbatch_size={self.microbatch_size} splits a batch of '
        f'{largest_batch} examples, but batch statistics are those of a whole '
        'batch: leave microbatch_size unset'
      )
    # A short last batch needs fewer parts.
    num_parts = -(-(stop - start) // part_size)
    totals = lax.fori_loop(0, num_parts, lambda i, t: add_part(i, t)[0], zeros)
    return *totals, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalTraining(LocalGradient):
  """A client's part of federated averaging: trains for several epochs.

  The update is the trained model minus the server's model.

  Attributes:
    optimizer: optimiser of the client's steps; its state is new in every round.
    local_epochs: passes over the client's examples, each in a new random order.

  References:
    García-Márquez et al. 2025, section 2.1.
  """

  optimizer: AnyOptimizer
  local_epochs: int

  @property
  def numbers(self) -> dict[str, Any]:
    """See `LocalGradient.numbers`: the learning rate of an `Optimizer`."""
    return numbers_of(self.optimizer)

  def with_numbers(self, numbers: dict[str, Any]) -> 'LocalTraining':
    """See `LocalGradient.with_numbers`."""
    optimizer = with_numbers(self.optimizer, numbers)
    return dataclasses.replace(self, optimizer=optimizer)

  def __call__(
    self, variables: PyTree, data: ClientData, key: jax.Array
  ) -> tuple[PyTree, jax.Array]:
    """Computes one client's update; see `LocalGradient.__call__`."""

    def epoch(i, carry):
      epoch_key = jax.random.fold_in(key, i)
      order = self.order(epoch_key, data)
      step = functools.partial(self._step, data, epoch_key, order)
      num_steps = -(-data.num_examples // self.batch_size)
      variables, opt_state, loss = lax.fori_loop(0, num_steps, step, carry)
      params = self.after('epoch', variables['params'])
      return {**variables, 'params': params}, opt_state, loss

    opt_state = self.optimizer.init(variables['params'])
    start = (variables, opt_state, jnp.zeros(()))
    trained, _, loss = lax.fori_loop(0, self.local_epochs, epoch, start)
    num_used = jnp.maximum(data.num_examples * self.local_epochs, 1)
    update = jax.tree.map(jnp.subtract, trained, variables)
    return self.to_update_dtype(update), loss / num_used

  def _step(self, data, key, order, i, carry):
    """Takes step i of an epoch, and adds its loss to the sum in the carry."""
    variables, opt_state, total = carry
    start = i * self.batch_size
    stop = jnp.minimum(start + self.batch_size, data.num_examples)
    loss, grads, updated = self.loss_and_gradient(
      variables, data, key, order, start, stop
    )
    grads = jax.tree.map(lambda g: g / (stop - start), grads)
    grads = self.change_gradient(grads, variables['params'])
    updates, opt_state = self.optimizer.update(
      grads, opt_state, variables['params']
    )
    params = optax.apply_updates(variables['params'], updates)
    params = self.after('step', params)
    variables = {**variables, **updated, 'params': params}
    return variables, opt_state, total + loss

  # Clients that train in another way override the methods below.

  def order(self, key: jax.Array, data: ClientData) -> jax.Array:
    """Returns the positions of a client's examples in the order of an epoch.

    Args:
      key: PRNG key of the epoch.
      data: the client's examples.
    """
    return shuffled(key, len(data.labels), data.num_examples)

  def change_gradient(self, gradient: PyTree, params: PyTree) -> PyTree:
    """Returns the gradient that the optimiser is given."""
    del params
    return gradient

  def after(self, what: Literal['step', 'epoch'], params: PyTree) -> PyTree:
    """Returns the parameters as they go on after a step or an epoch."""
    del what
    return params


def with_momentum(
  momenta: Updates, updates: Updates, client_ids: jax.Array, momentum: float
) -> tuple[Updates, Updates]:
  r"""Worker momentum: each client sends a moving average of its updates.

  .. math:: m_i \leftarrow \beta m_i + (1 - \beta) x_i

  Only the rounds in which a client takes part enter its average.

  Args:
    momenta: leaves `[num_clients, ...]`, zeros before the first round.
    updates: leaves `[n, ...]`, the updates of this round's clients.
    client_ids: `[n]` ids of these clients. An id of `num_clients` stands for a
      client whose momentum must not change.
    momentum: :math:`\beta`.

  Returns:
    The new momenta of all clients, and the momenta of this round's clients,
    leaves `[n, ...]` in the dtypes of the updates.

  Examples:
    >>> momenta, sent = with_momentum(
    ...   jnp.array([4., 8.]), jnp.array([2.]), jnp.array([1]), momentum=0.5)
    >>> print(momenta, sent)
    [4. 5.] [5.]

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

  The order of the first `count` positions does not depend on `size`, because
  each position draws a random number from its own key.

  Args:
    key: PRNG key.
    size: length of the padded array.
    count: number of real examples, `[]`.

  Returns:
    `[size]` positions.

  Examples:
    >>> order = shuffled(jax.random.key(0), size=5, count=3)
    >>> sorted(order[:3].tolist()), sorted(order[3:].tolist())
    ([0, 1, 2], [3, 4])
  """
  positions = jnp.arange(size)
  draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(
    positions
  )
  return jnp.lexsort((draws, positions >= count))
