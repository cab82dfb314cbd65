"""LEGATO: layers that vary over the rounds lean on their past."""

import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.selection import check_integers
from lca.stacked import geometry
from lca.stacked.layer_norms import Norm, layer_grams, normalized
from lca.stacked.trees import Layers, Scope, grouping
from lca.typing import PyTree

Normalize = Literal['sum', 'max']
Divisor = Literal['past', 'window']

_EPSILON = 1e-6  # of the largest mean norm: added to every layer's deviation


class LegatoState(NamedTuple):
  """What LEGATO remembers, of m rounds and L layers.

  Attributes:
    past: leaves `[m - 1, ...]`, a ring of past mean updates.
    norms: `[m, L]`, a ring of normalised norms (Eq. 2), this round's included.
    count: `[]`, rounds logged so far.
    factors: `[L]`, the last round's robustness factors (line 16).
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
  r"""LayerwisE Gradient AggregaTiOn, an `Aggregator` (Algorithm 2).

  .. math:: P_l^t = \frac{\|[g_{1,l}^t, \dots, g_{n,l}^t]\|}
      {\sum_p \|G_p^t\|}, \qquad
      w_l = \mathrm{Normalize}\Big(\frac{1}{\mathrm{std}_t P_l^t}\Big), \qquad
      G_l = w_l\, \bar g_l^t + \frac{1 - w_l}{m - 1}
      \sum_{j=1}^{m-1} \bar g_l^{t-j}

  where :math:`\bar g` is the mean over the workers. The paper logs the
  gradients of every worker, in O(d n m). But line 20 is linear in them, and
  line 23 averages over the workers with one :math:`w_l` for all:

  .. math:: \frac{1}{n} \sum_p \Big(w_l\, g_{p,l}^t + \frac{1 - w_l}{m - 1}
      \sum_j g_{p,l}^{t-j}\Big) = w_l\, \bar g_l^t + \frac{1 - w_l}{m - 1}
      \sum_j \bar g_l^{t-j}

  and of a past round, line 12 needs no more than its :math:`P_l`. So the past
  means and a table of norms are enough: O(d m), whatever n is, with the same
  result, in two readings of the updates and one of the past. Of a state that
  is given away, as in `jax.jit(aggregator.update, donate_argnums=1)`, nothing
  is copied.

  It damps noise. It bounds no worker's influence: one enormous finite update
  moves the result as far as it likes. A rejected one (see `lca.geometry`, by
  the whole update) is left out of its round, or it would spoil m of them; with
  nobody left the update is NaN and nothing is logged.

  Until two rounds are logged, and with a window of 1, it is the mean. To the
  deviation of every layer 1e-6 of the largest layer's mean norm is added, for
  a layer whose norms do not vary to have one. It is then by far the most robust
  one, whatever it holds: next to a layer whose gradient is always zero, the
  others' factors sum to almost 0.

  Promise (docs/rules.md): none.

  Args:
    window: m, the log's size in rounds, this one included.
    by: what a layer is, as in `lca.layerwise`.
    norm: of the matrix of a layer's gradients. `'frobenius'` is the one whose
      cost the paper states; `'spectral'` needs the layer's Gram matrix.
    normalize: factors are divided by their `'sum'` or their `'max'` over the
      layers. With more layers than m, the sum weighs each past round above the
      present one, and a warning says so.
    divisor: of the past's sum: how many rounds of the `'past'` there are, or
      always m - 1, the full `'window'`.

  Returns:
    An Aggregator with a `LegatoState`; `lca.explain` of it tells `weights`,
    `[layers, n]`, of this round's rows, the mask `[n]` of the `rejected` ones,
    and the layers' robustness `factors`, `[layers]`, as in the new state.

  Raises:
    ValueError: unless window >= 1, or an unknown option.

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
        f'with {num_layers} layers and window={window}, factors that sum to 1 '
        'weigh every past round above the present one',
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
    grams = layer_grams(layers.split(updates), norm)
    bad = geometry.rejected_rows(jnp.sum(grams, axis=0))
    anybody = ~jnp.all(bad)
    shares = jnp.where(anybody, ~bad / jnp.sum(~bad), jnp.nan)
    mean = geometry.mix(updates, shares)

    past, norms, count, _ = state
    norms = norms.at[count % window].set(normalized(grams, bad, norm))
    logged = jnp.minimum(count + 1, window)
    factors = _factors(norms, logged, normalize)
    update = mean
    if window > 1:
      in_past = jnp.arange(window - 1) < logged - 1
      rounds = jnp.sum(in_past) if divisor == 'past' else window - 1
      history = geometry.mix(past, in_past / jnp.maximum(rounds, 1))

      def blend(factor, new, old):  # line 20, on the means
        return jax.tree.map(
          lambda x, y: (factor * x + (1 - factor) * y).astype(x.dtype), new, old
        )

      parts = zip(
        factors, layers.split(mean), layers.split(history), strict=True
      )
      update = layers.join([blend(*part) for part in parts])
      # The ring takes this round's mean unless it is of nobody, and then the
      # update is NaN. To ask the update rather than the mean also lets XLA know
      # that the ring has been read: it would copy it twice (jaxlib 0.10).
      slot = count % (window - 1)
      past = jax.tree.map(
        lambda ring, new, of_it: ring.at[slot].set(
          jnp.where(jnp.isnan(of_it), ring[slot], new)
        ),
        past,
        mean,
        update,
      )
    log = jax.tree.map(
      lambda new, old: jnp.where(anybody, new, old),
      (norms, count + 1, factors),
      state[1:],
    )
    state = LegatoState(past, *log)
    info = {
      'weights': factors[:, None] * shares,
      'rejected': bad,
      'factors': state.factors,
    }
    return update, state, info

  return Aggregator(init, ExplainedUpdate(explain, takes_scope=True))


def _factors(
  norms: jax.Array, logged: jax.Array, normalize: Normalize
) -> jax.Array:
  """Lines 15 to 17: `[layers]` from the `[m, layers]` norms of the log."""
  in_log = (jnp.arange(len(norms)) < logged)[:, None]

  def over_log(x):
    return jnp.sum(jnp.where(in_log, x, 0), axis=0) / logged

  mean = over_log(norms)
  deviation = jnp.sqrt(over_log((norms - mean) ** 2))
  deviation += _EPSILON * jnp.max(mean)
  inverse = 1 / jnp.where(deviation > 0, deviation, 1)
  total = jnp.sum(inverse) if normalize == 'sum' else jnp.max(inverse)
  return jnp.where(logged < 2, 1, inverse / total)
