"""LEGATO: blends each layer's mean with its past, by the layer's robustness.

Algorithm 2 of Varma et al. 2021. Comments give its line numbers.
"""

import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.selection import check_integers
from lca.stacked import geometry, layer_norms
from lca.stacked.layer_norms import Norm
from lca.stacked.trees import Layers, Scope, grouping
from lca.typing import PyTree

Normalize = Literal['sum', 'max']
Divisor = Literal['past', 'window']

_RELATIVE_FLOOR = 1e-6  # times the largest mean norm, added to all deviations


class LegatoState(NamedTuple):
  """The state of LEGATO with a window of m rounds and L layers.

  Attributes:
    past: leaves `[m - 1, ...]`, a ring buffer of the past rounds' mean updates.
    norms: `[m, L]`, a ring buffer of the normalised norms (Eq. 2), this round's
      included.
    count: `[]`, number of rounds logged so far.
    factors: `[L]`, robustness factors of the last round (line 16).
  """

  past: PyTree
  norms: jax.Array
  count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
  factors: jax.Array


def legato(
  *,
  window: int = 10,
  by: Scope = 'leaf',
  norm: Norm = 'frobenius',
  normalize: Normalize = 'sum',
  divisor: Divisor = 'past',
) -> Aggregator:
  r"""Returns the LEGATO aggregator: LayerwisE Gradient AggregaTiOn.

  The more the norm of a layer varies over the rounds, the more weight the past
  updates of that layer have. In Algorithm 2, lines 12 (Eq. 2), 16 and 20:

  .. math:: P_l^t = \frac{\|[g_{1,l}^t, \dots, g_{n,l}^t]\|}
      {\sum_p \|G_p^t\|}, \qquad
      w_l = \mathrm{Normalize}\Big(\frac{1}{\mathrm{std}_t P_l^t}\Big), \qquad
      G_l = w_l\, \bar g_l^t + \frac{1 - w_l}{m - 1}
      \sum_{j=1}^{m-1} \bar g_l^{t-j}

  where :math:`\bar g` is the mean over the workers. The paper logs the
  gradients of every worker, O(d n m) numbers. But line 20 is linear in the
  gradients, and line 23 averages over the workers, which share one :math:`w_l`
  per layer (the line prints a sum; the paper's text says average):

  .. math:: \frac{1}{n} \sum_p \Big(w_l\, g_{p,l}^t + \frac{1 - w_l}{m - 1}
      \sum_j g_{p,l}^{t-j}\Big) = w_l\, \bar g_l^t + \frac{1 - w_l}{m - 1}
      \sum_j \bar g_l^{t-j}

  and for a past round only :math:`P_l` of line 12 is needed. So the past means
  and `[m, layers]` norms give the same result with O(d m) numbers, whatever n
  is. An update reads the clients' updates twice and the past once. If the state
  is donated, as in `jax.jit(aggregator.update, donate_argnums=1)`, no part of
  it is copied.

  LEGATO damps noise. It bounds no worker's influence: one enormous finite
  update moves the result arbitrarily far. A row that is rejected as a
  whole update (see `lca.geometry`) is left out of its round in every layer,
  because it would otherwise spoil m rounds. If no row is left, the update is
  NaN and nothing is logged.

  Until two rounds are logged, and with a window of 1, the update is the mean.
  1e-6 of the largest layer's mean norm is added to every layer's deviation, so
  that the deviation of a layer with constant norms is not zero. A layer with
  constant norms is then by far the most robust layer, whatever its values: next
  to a layer whose gradient is always zero, the other layers' factors sum to
  almost 0.

  Promise (docs/rules.md): none.

  Args:
    window: m, number of rounds in the log, this round included.
    by: grouping of leaves into layers, as in `lca.layerwise`.
    norm: norm of the matrix of a layer's gradients. `'frobenius'` is the norm
      whose cost the paper states; `'spectral'` needs the layer's Gram matrix.
    normalize: divisor of the factors over the layers: their `'sum'` or their
      `'max'`. With more layers than m and `'sum'`, each past round has a larger
      weight than the present round, and a warning says so.
    divisor: divisor of the sum over the past: `'past'` is the number of past
      rounds in the log, `'window'` is always m - 1.

  Returns:
    An Aggregator with a `LegatoState`. `lca.explain` reports `weights`,
    `[layers, n]`, of this round's rows; `rejected`, `[n]`; and the robustness
    `factors`, `[layers]`, as in the new state.

  Raises:
    ValueError: unless window >= 1, or if an option is unknown.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> agg = lca.legato(window=2)
    >>> state = agg.init({'b': jnp.zeros(1), 'w': jnp.zeros(1)})
    >>> for size in (1., 2.):
    ...   updates = {'b': jnp.array([[size], [3.]]), 'w': jnp.ones((2, 1))}
    ...   update, state = agg.update(updates, state)
    >>> print(update['b'].round(3), state.factors.sum(), state.count)
    [2.335] 1.0 2

  References:
    Varma, Zhou, Baracaldo and Anwar, LEGATO: a layerwise gradient aggregation
    algorithm for mitigating Byzantine attacks in federated learning, 2021.
  """
  check_integers('legato', window=window)
  if window < 1:
    raise ValueError(f'legato needs window >= 1, got window={window}')
  for name, value, known in (
    ('norm', norm, ('frobenius', 'spectral')),
    ('normalize', normalize, ('sum', 'max')),
    ('divisor', divisor, ('past', 'window')),
  ):
    if value not in known:
      raise ValueError(f'{name} must be one of {known}, got {value!r}')
  key = grouping(by)

  def init(params):
    num_layers = len(Layers(params, key).split(params))
    if normalize == 'sum' and 1 < window < num_layers:
      warnings.warn(
        f'with {num_layers} layers and window={window}, the factors sum to 1 '
        'and each past round weighs more than the present one: use a window '
        "of at least the number of layers, a coarser scope, or normalize='max'",
        stacklevel=2,
      )
    past = jax.tree.map(
      lambda x: jnp.zeros((window - 1, *jnp.shape(x)), jnp.result_type(x)),
      params,
    )
    return LegatoState(
      past,
      norms=jnp.zeros((window, num_layers)),
      count=jnp.zeros((), jnp.int32),
      factors=jnp.ones(num_layers),
    )

  def explain(updates, state, **brought):
    del brought
    geometry.num_clients(updates)
    layers = Layers(updates, key)
    products = layer_norms.layer_products(layers.split(updates), norm)
    rejected = layer_norms.rejected_rows(products)
    any_accepted = ~jnp.all(rejected)
    shares = jnp.where(any_accepted, ~rejected / jnp.sum(~rejected), jnp.nan)
    mean = geometry.mix(updates, shares)

    past, norms, count, _ = state
    # Lines 7 to 14, Eq. 2. The norms of past rounds are in the ring already.
    new_norms = layer_norms.normalized(products, rejected)
    norms = norms.at[count % window].set(new_norms)
    logged = jnp.minimum(count + 1, window)
    factors = _factors(norms, logged, normalize)  # lines 15 to 17
    update = mean
    if window > 1:
      # `[m - 1]`: True for the slots of the ring that hold a past round.
      in_past = jnp.arange(window - 1) < logged - 1
      rounds = jnp.sum(in_past) if divisor == 'past' else window - 1
      history = geometry.mix(past, in_past / jnp.maximum(rounds, 1))

      # Lines 18 to 23, on the means over the workers.
      def blend(factor, new, old):
        return jax.tree.map(
          lambda x, y: (factor * x + (1 - factor) * y).astype(x.dtype), new, old
        )

      parts = zip(
        factors, layers.split(mean), layers.split(history), strict=True
      )
      update = layers.join([blend(*part) for part in parts])
      # Lines 24 to 28, the log: the ring buffer takes this round's mean. If no
      # client was usable, the update is NaN and the ring keeps its entry. The
      # test reads `update` rather than `any_accepted` so that XLA knows that
      # the ring has been read before it is written: otherwise XLA copies the
      # ring twice (jaxlib 0.10).
      slot = count % (window - 1)
      past = jax.tree.map(
        lambda ring, new, updated: ring.at[slot].set(
          jnp.where(jnp.isnan(updated), ring[slot], new)
        ),
        past,
        mean,
        update,
      )
    log = jax.tree.map(
      lambda new, old: jnp.where(any_accepted, new, old),
      (norms, count + 1, factors),
      state[1:],
    )
    state = LegatoState(past, *log)
    info = {
      'weights': factors[:, None] * shares,
      'rejected': rejected,
      'factors': state.factors,
    }
    return update, state, info

  return Aggregator(init, ExplainedUpdate(explain, takes_scope=True))


def _factors(
  norms: jax.Array, logged: jax.Array, normalize: Normalize
) -> jax.Array:
  """Returns `[layers]` robustness factors from `[m, layers]` norms.

  Lines 15 to 17 of Algorithm 2. Only the first `logged` rows of the norms hold
  a round.
  """
  in_log = (jnp.arange(len(norms)) < logged)[:, None]

  def over_log(x):
    return jnp.sum(jnp.where(in_log, x, 0), axis=0) / logged

  mean = over_log(norms)
  deviation = jnp.sqrt(over_log((norms - mean) ** 2))
  deviation += _RELATIVE_FLOOR * jnp.max(mean)
  inverse = 1 / jnp.where(deviation > 0, deviation, 1)
  total = jnp.sum(inverse) if normalize == 'sum' else jnp.max(inverse)
  return jnp.where(logged < 2, 1, inverse / total)
