"""The arguments that a round of training brings to an aggregation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from lca.typing import PyTree, Update, Updates

ROUND_BRINGS = (
  *('key', 'weights', 'server_update', 'params', 'client_ids', 'predict'),
)
"""Names of the arguments that a round of training passes to an aggregation.

These arguments are not options of a config. A rule that names one of them
receives its value in every round. `UpdateFn` describes each argument.
"""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Predictor:
  """The model as a function, for rules that look at what models return.

  It is a pytree without leaves, so that it may be an argument of a jitted
  function.

  Attributes:
    function: maps parameters, a tree shaped like one update, and inputs
      `[batch, ...]` to logits `[batch, classes]`.
    input_spec: shape and dtype of one input, without a batch.
    input_range: the smallest and the largest value that an input can have.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> predict = lca.Predictor(
    ...   lambda params, x: x @ params['kernel'] + params['bias'],
    ...   jax.ShapeDtypeStruct((2,), jnp.float32))
    >>> inputs = predict.random_inputs(jax.random.key(0), 5)
    >>> params = {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}
    >>> predict(params, inputs).shape
    (5, 3)
  """

  function: Callable[[PyTree, jax.Array], jax.Array]
  input_spec: jax.ShapeDtypeStruct
  input_range: tuple[float, float] = (0.0, 1.0)

  def __call__(self, params: PyTree, inputs: jax.Array) -> jax.Array:
    return self.function(params, inputs)

  def random_inputs(self, key: jax.Array, count: int) -> jax.Array:
    """Returns inputs whose entries are uniform in the range, `[count, ...]`.

    Args:
      key: PRNG key.
      count: number of inputs.
    """
    shape, dtype = (count, *self.input_spec.shape), self.input_spec.dtype
    low, high = self.input_range
    if jnp.issubdtype(dtype, jnp.floating):
      return jax.random.uniform(key, shape, dtype, low, high)
    low, high = math.ceil(low), math.floor(high)
    return jax.random.randint(key, shape, low, high + 1).astype(dtype)


class UpdateFn(Protocol):
  """The signature of `Aggregator.update`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    state: from `Aggregator.init` or from the round before.
    key: PRNG key of this round.
    weights: `[n]`, the clients' numbers of examples; 0 for clients that did not
      answer.
    server_update: update that the server computed on its own examples, a tree
      shaped like one update.
    params: parameters that the clients started from in this round, a tree
      shaped like one update.
    client_ids: `[n]`, indices of the clients in the population.
    predict: the model as a function of such parameters and of inputs.

  Returns:
    The update and the next state.
  """

  def __call__(
    self,
    updates: Updates,
    state: PyTree,
    *,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    server_update: Update | None = None,
    params: Update | None = None,
    client_ids: jax.Array | None = None,
    predict: Predictor | None = None,
  ) -> tuple[Update, PyTree]: ...
