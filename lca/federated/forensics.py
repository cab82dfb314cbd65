"""The evidence of a round: who was chosen, in which layer, and how far off.

`evidence` measures a round on the devices. It reads the updates four times,
whatever the rule: for the norms, for the distances from the honest mean, and
for two inner products. `lca.experiment.forensics` keeps the numbers and derives
others from them.
"""

import jax
import jax.numpy as jnp

from lca.federated.metrics import RoundResult
from lca.stacked import geometry, sums
from lca.stacked.trees import group_leaves, grouping
from lca.typing import Updates

Evidence = dict[str, jax.Array]
"""Numbers about a round by name: `[n]`, `[layers, n]` or `[layers]`."""


def evidence(result: RoundResult) -> Evidence:
  """Measures every client of a round in every layer.

  A layer is one leaf of the aggregated tree, whatever the rule's own scope. The
  honest mean is the mean of the updates of honest clients that answered and are
  not rejected.

  Args:
    result: the finished round.

  Returns:
    `byzantine` and `answered`, `[n]` masks. Of each layer and client, `[layers,
    n]`: `norms` of the updates; `distances` from the honest mean;
    `cos_aggregate` and `cos_honest`, cosines with the aggregate and with the
    honest mean; `rejected`; and, if the rule reports them, `weights` and
    `selected`. `norms` and `distances` of a row that is not finite or
    far too large are +inf; its cosines may be NaN, and so are cosines with a
    zero vector. Of each layer,
    `[layers]`: `aggregate_norm`, `honest_norm` and `gap`, the distance between
    aggregate and honest mean.

  Raises:
    ValueError: the rule reports decisions about layers of its own, which are
      none of the scopes by name.
  """
  rows = result.for_rule
  aggregate = {name: result.update[name] for name in rows}
  info, n = result.info, len(result.losses)
  answered = jnp.ones(n, bool) if result.answered is None else result.answered

  squares = jnp.stack([sums.squares(x) for x in jax.tree.leaves(rows)])
  rejected = geometry.rejected_rows(jnp.diag(jnp.sum(squares, axis=0)))
  counted = ~result.byzantine & answered & ~rejected
  share = jnp.where(counted, 1 / jnp.maximum(jnp.sum(counted), 1), 0)
  honest = geometry.mix(rows, share)

  distances, towards = [], {'aggregate': [], 'honest': []}
  layers = {'aggregate_norm': [], 'honest_norm': [], 'gap': []}
  for x, a, h in zip(
    *map(jax.tree.leaves, (rows, aggregate, honest)), strict=True
  ):
    distances.append(sums.squares(x.astype(sums.wide(x.dtype)) - h))
    towards['aggregate'].append(sums.inner(x, a))
    towards['honest'].append(sums.inner(x, h))
    layers['aggregate_norm'].append(_norm(a))
    layers['honest_norm'].append(_norm(h))
    layers['gap'].append(_norm(a.astype(sums.wide(a.dtype)) - h))

  norms = _lengths(squares)
  measured = {k: jnp.stack(numbers) for k, numbers in layers.items()}
  for name in towards:
    lengths = norms * measured[f'{name}_norm'][:, None]
    cosines = jnp.stack(towards[name]) / jnp.where(
      lengths > 0, lengths, jnp.nan
    )
    measured[f'cos_{name}'] = jnp.clip(cosines, -1, 1)
  # A rule that looks at no norms, as the mean, rejects nobody.
  rejected_by_rule = info.get('rejected', rejected)
  decisions = {}
  if 'weights' in info:
    decisions['weights'] = info['weights']
    decisions['selected'] = info['weights'] != 0
  elif 'selected' in info:
    decisions['selected'] = info['selected']
  return measured | {
    'byzantine': jnp.asarray(result.byzantine),
    'answered': answered,
    'norms': norms,
    'distances': _lengths(jnp.stack(distances)),
    'rejected': jnp.isinf(norms) | _by_leaf(rejected_by_rule, rows),
    **{k: _by_leaf(x, rows) for k, x in decisions.items()},
  }


def _norm(x: jax.Array) -> jax.Array:
  """Returns the norm of one array."""
  return jnp.sqrt(sums.squares(x[None])[0])


def _lengths(squares: jax.Array) -> jax.Array:
  """Returns the norms of rows in each layer from their squares, `[layers, n]`.

  The norm of a row that is not finite or far too large is +inf.
  """
  return jax.vmap(geometry.norms)(jax.vmap(jnp.diag)(squares))


def _by_leaf(decisions: jax.Array, rows: Updates) -> jax.Array:
  """Returns `[leaves, n]` decisions from those about the rule's own layers.

  The number of the rule's layers tells its scope by name. If two of these
  scopes have equally many layers, they have the same layers, because each is a
  refinement of the next. Layers by a function of one's own are taken for those
  of a scope if there happen to be equally many.

  Args:
    decisions: `[n]`, or `[layers, n]`.
    rows: the stacked updates that the rule aggregated.
  """
  leaves = len(jax.tree.leaves(rows))
  decisions = jnp.atleast_2d(decisions)
  for scope in ('leaf', 'module', 'block', 'model'):
    groups = group_leaves(rows, grouping(scope)).values()
    if len(groups) == len(decisions):
      layer_of = {leaf: k for k, group in enumerate(groups) for leaf in group}
      return decisions[jnp.array([layer_of[leaf] for leaf in range(leaves)])]
  raise ValueError(
    f'eval.forensics: the rule reports on {len(decisions)} layers of its own, '
    f'but the model has {leaves} leaves; use a scope by name for the rule '
    "('leaf', 'module', 'block' or 'model'), or leave eval.forensics out"
  )
