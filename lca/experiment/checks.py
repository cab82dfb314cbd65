"""Dry runs of a rule and a model, which raise what a run would raise."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lca import aggregators
from lca.aggregators import Aggregator
from lca.data import Dataset
from lca.federated.population import Population
from lca.models import Classifier
from lca.typing import PyTree, Update, Updates


def check_jit() -> None:
  """Checks that JAX compiles.

  Raises:
    ValueError: `jax_disable_jit` is set.
  """
  if jax.config.jax_disable_jit:
    raise ValueError(
      'a run compiles its rounds before the first one, which jax_disable_jit '
      '(JAX_DISABLE_JIT=1) forbids: unset it. To look into a run use '
      'jax.debug.print in the rule, the attack or the model; without jit these '
      'run when they are called on their own'
    )


def check_layers(layers: str | None, rule: Mapping[str, Any]) -> None:
  """Checks `eval.layers` against the keys of the rule.

  Raises:
    ValueError: an unknown scope, or another than that of LEGATO's factors.
  """
  if layers:
    aggregators.layer_names({}, layers)  # raises of an unknown scope
  if layers and rule['name'] == 'legato' and rule['scope'] != layers:
    raise ValueError(
      f'eval.layers={layers!r} must be aggregator.scope={rule["scope"]!r}: the '
      'factors are those of its layers'
    )


def check_model(classifier: Classifier, dataset: Dataset) -> PyTree:
  """Returns the shapes of the model's variables for a data set.

  Raises:
    ValueError: the model has no logit for some class of the data; or as the
      model.
  """
  key, spec = jax.random.key(0), dataset.train.input_spec
  drawn = dataclasses.replace(classifier, pretrained='')  # of the same shapes
  shapes = jax.eval_shape(lambda: drawn.init(key, spec))
  classifier.check_classes(shapes, spec, dataset.num_classes)
  return shapes


def check_aggregator(
  aggregator: Aggregator, n: int, has_root: bool, like: PyTree | None = None
) -> None:
  """Traces the rule on n clients, so that it raises what it would raise.

  Args:
    aggregator: any.
    n: clients in a round.
    has_root: the server trains, too, on examples of its own.
    like: a tree of shapes like an update; None is one matrix among the
      parameters.

  Raises:
    ValueError, TypeError: as the rule; or it needs the server's update and
      there is none, or returns no tree like an update.
  """

  def one_round(updates):
    one = jax.tree.map(lambda x: x[0], updates)
    return _dry_run(aggregator, updates, one, jnp.ones(n), has_root)

  if like is None:
    like = {'params': {'kernel': jax.ShapeDtypeStruct((1,), jnp.float32)}}
  updates = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), like
  )
  try:
    update = jax.eval_shape(one_round, updates)
  except TypeError as error:
    if has_root or 'server_update' not in str(error):
      raise
    raise TypeError(
      f'{error}: that is what the server trains itself, on examples of its '
      'own; set data.root_examples, to 100 say'
    ) from error
  made, wanted = (jax.tree.map(jnp.shape, tree) for tree in (update, like))
  if made != wanted:
    raise ValueError(
      f'the aggregator makes {made} of {n} updates of {wanted}: it must return '
      'one update'
    )


def _dry_run(
  aggregator: Aggregator,
  updates: Updates,
  one: Update,
  weights: jax.Array,
  has_root: bool,
) -> Update:
  """Returns the aggregate of a first round, which brings all that rounds bring.

  Args:
    aggregator: any.
    updates: stacked pytree, leaves `[n, ...]`.
    one: a tree like one update; the model and the server's update, too.
    weights: `[n]`, the clients' numbers of examples.
    has_root: the server has an update of its own.
  """
  update, _, _ = aggregators.explain(aggregator)(
    updates,
    aggregator.init(one),
    key=jax.random.key(0),
    weights=weights,
    server_update=one if has_root else None,
    params=one,
    client_ids=jnp.arange(len(weights)),
  )
  return update


def check_dropouts(
  config: Mapping[str, Any], aggregator: Aggregator, population: Population
) -> None:
  """Dry-runs the rule with the largest number of dropouts of any round.

  Args:
    config: complete nested dicts.
    aggregator: of the updates.
    population: whose clients may not answer.

  Raises:
    ValueError: f is too small for so many, or the aggregate is not finite.
  """
  if not population.drop_rate:
    return
  worst, missing = population.most_dropped(config['seed'], config['num_rounds'])
  if not missing:
    return
  attack, n = population.num_byzantine or 0, population.clients_per_round
  rule, rate = config['aggregator'], population.drop_rate
  if 'f' in rule and rule['f'] < missing + attack:
    raise ValueError(
      f'aggregator.f={rule["f"]} is too small for client.drop_rate={rate}: of '
      f'the {n} clients of round {worst + 1}, {missing} do not answer'
      + (f' and {attack} attack' if attack else '')
    )
  answered = jnp.arange(n) >= missing
  rows = jax.random.normal(jax.random.key(0), (n, 1))
  one = {'params': {'kernel': rows[0]}}
  update = _dry_run(
    aggregator,
    {'params': {'kernel': jnp.where(answered[:, None], rows, jnp.nan)}},
    one,
    answered.astype(jnp.float32),
    config['data']['root_examples'] > 0,
  )
  if not jnp.all(jnp.isfinite(update['params']['kernel'])):
    plain = rule['name'] == 'mean' and rule.get('weights') != 'examples'
    hint = " unless aggregator.weights='examples'" if plain else ''
    raise ValueError(
      f'client.drop_rate={rate}: {rule["name"]} does not go without {missing} '
      f'of {n} clients{hint}, as many as do not answer in round {worst + 1}'
    )
