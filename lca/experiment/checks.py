"""Checks of a rule and a model before a run: dry runs that raise its errors.

A dry run traces shapes, or aggregates a few numbers, so that an error shows
before data are read or a round is compiled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lca import aggregators
from lca.aggregators import Aggregator, Predictor
from lca.aggregators.base import Info
from lca.data import Dataset
from lca.federated.population import Population
from lca.federated.round import without_answer
from lca.federated.schedule import Schedule
from lca.models import Classifier
from lca.typing import PyTree, Update, Updates

# A stand-in for a model that is not known yet: a layer with two outputs.
_LAYER = {
  'params': {
    'kernel': jax.ShapeDtypeStruct((1, 2), jnp.float32),
    'bias': jax.ShapeDtypeStruct((2,), jnp.float32),
  }
}
_PREDICT = Predictor(
  lambda tree, x: x @ tree['params']['kernel'] + tree['params']['bias'],
  jax.ShapeDtypeStruct((1,), jnp.float32),
)


def check_jit() -> None:
  """Checks that `jax.jit` is not switched off.

  Raises:
    ValueError: `jax_disable_jit` is set.
  """
  if jax.config.jax_disable_jit:
    raise ValueError(
      'a run compiles its rounds before the first one, which jax_disable_jit '
      '(JAX_DISABLE_JIT=1) forbids: unset it. To look into a run, use '
      'jax.debug.print in the rule, the attack or the model. To debug these '
      'without jit, call them on their own'
    )


def check_layers(layers: str | None, rule: Mapping[str, Any]) -> None:
  """Checks `eval.layers`, the scope of the layers among the metrics.

  Args:
    layers: the scope; None measures no layers.
    rule: the keys of `aggregator`.

  Raises:
    ValueError: an unknown scope, or under LEGATO another scope than its own,
      because its factors belong to the layers of `aggregator.scope`.
  """
  if layers:
    try:
      aggregators.layer_names({}, layers)
    except ValueError as error:
      raise ValueError(f'eval.layers: {error}') from None
  if layers and rule['name'] == 'legato' and rule['scope'] != layers:
    raise ValueError(
      f'eval.layers={layers!r} must be the same as '
      f"aggregator.scope={rule['scope']!r}: LEGATO's factors, which are among "
      'the metrics, belong to the layers of that scope'
    )


def check_best(best: str, validation: float) -> None:
  """Checks that `checkpoint.best` names a metric that the run measures.

  Args:
    best: the metric; '' keeps no best model.
    validation: the share of the training examples that is held out.

  Raises:
    ValueError: a metric of the validation examples, and there are none.
  """
  if best.startswith('validation') and not validation:
    raise ValueError(
      f'checkpoint.best={best!r} needs training examples that are held out for '
      'validation, and data.validation is 0: set it to their share, for '
      "instance to 0.1, or choose checkpoint.best='test_accuracy'"
    )


def check_model(classifier: Classifier, dataset: Dataset) -> PyTree:
  """Returns the shapes of the model's variables for a data set.

  The shapes are traced: no weights are drawn or loaded.

  Raises:
    ValueError: the model returns fewer logits than the data have classes, or
      cannot take their inputs.
  """
  key, spec = jax.random.key(0), dataset.train.input_spec
  # Pretrained weights have the shapes of weights that are drawn.
  drawn = dataclasses.replace(classifier, pretrained='')
  shapes = jax.eval_shape(lambda: drawn.init(key, spec))
  classifier.check_classes(shapes, spec, dataset.num_classes)
  return shapes


def traced_predictor(predict: Predictor, shapes: PyTree) -> Predictor:
  """Returns the model's function, for traces of the rule.

  Args:
    predict: maps all variables and inputs to logits.
    shapes: of all variables, from `check_model`. Those that the rule does not
      work on, such as batch statistics, are zeros in the traces.
  """

  def function(tree, inputs):
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return predict({**zeros, **tree}, inputs)

  return dataclasses.replace(predict, function=function)


def check_aggregator(
  aggregator: Aggregator,
  n: int,
  has_root: bool,
  like: PyTree | None = None,
  detection: bool = False,
  predict: Predictor | None = None,
) -> None:
  """Traces the rule on the shapes of n updates, which raises its own errors.

  Args:
    aggregator: the rule.
    n: clients in a round.
    has_root: True if the server trains on examples of its own.
    like: a tree of shapes like one update; None stands for a model with one
      layer.
    detection: True if the run measures whom the rule leaves out.
    predict: the model as a function; None if `like` is None.

  Raises:
    ValueError, TypeError: the rule's own errors, such as of an `f` that is too
      large for n. Or the rule needs the server's update and there is none, or
      it returns something else than one update.
  """

  def one_round(updates):
    one = jax.tree.map(lambda x: x[0], updates)
    return _dry_run(aggregator, updates, one, jnp.ones(n), has_root, predict)

  if like is None:
    like, predict = _LAYER, _PREDICT
  updates = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), like
  )
  try:
    update, info = jax.eval_shape(one_round, updates)
  except (TypeError, ValueError) as error:
    if has_root or 'server_update' not in str(error):
      raise
    raise type(error)(
      f'{error}: server_update is what the server trains on examples of its '
      'own; set data.root_examples, for instance to 100'
    ) from error
  if detection and 'selected' not in info:
    raise ValueError(
      'eval.detection=True measures whom the rule leaves out, but this rule '
      'does not select whole updates: set it to False'
    )
  returned, wanted = (jax.tree.map(jnp.shape, tree) for tree in (update, like))
  if returned != wanted:
    raise ValueError(
      f'the aggregator must return one update, of the shapes {wanted}, but '
      f'given {n} updates it returns {returned}'
    )


def _dry_run(
  aggregator: Aggregator,
  updates: Updates,
  one: Update,
  weights: jax.Array,
  has_root: bool,
  predict: Predictor | None,
) -> tuple[Update, Info]:
  """Returns the aggregate of a first round, given all that a round brings.

  Also returns what the rule has decided (see `lca.explain`).

  Args:
    aggregator: any.
    updates: stacked pytree, leaves `[n, ...]`.
    one: a tree like one update; the model and the server's update, too.
    weights: `[n]`, the clients' numbers of examples.
    has_root: True if the server has an update of its own.
    predict: the model as a function.
  """
  update, _, info = aggregators.explain(aggregator)(
    updates,
    aggregator.init(one),
    key=jax.random.key(0),
    weights=weights,
    server_update=one if has_root else None,
    params=one,
    client_ids=jnp.arange(len(weights)),
    predict=predict,
  )
  return update, info


def check_dropouts(
  config: Mapping[str, Any], aggregator: Aggregator, population: Population
) -> None:
  """Dry-runs the rule with the largest number of dropouts of any round.

  A client that does not answer is a row of NaN. Which clients these are is
  known beforehand from the seed.

  Args:
    config: complete nested dicts.
    aggregator: the rule.
    population: the clients, with their drop rate.

  Raises:
    ValueError: `f` is smaller than the dropouts and attackers of that round
      together, or the aggregate is not finite.
  """
  if not population.drop_rate:
    return
  worst, missing = population.most_dropped(config['seed'], config['num_rounds'])
  if not missing:
    return
  # With attack.sampled the attackers of a round vary and are not counted.
  attack, n = population.num_byzantine or 0, population.clients_per_round
  rule, rate = config['aggregator'], population.drop_rate
  if 'f' in rule and rule['f'] < missing + attack:
    raise ValueError(
      f'aggregator.f={rule["f"]} is too small for client.drop_rate={rate}: of '
      f'the {n} clients of round {worst + 1}, {missing} do not answer'
      + (f' and {attack} attack' if attack else '')
      + f'; set aggregator.f to at least {missing + attack}'
    )
  # Random rows; the first `missing` clients do not answer.
  answered = jnp.arange(n) >= missing
  rows = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(0), (n, *x.shape)), _LAYER
  )
  update, _ = _dry_run(
    aggregator,
    without_answer(rows, answered),
    jax.tree.map(lambda x: x[0], rows),
    answered.astype(jnp.float32),
    config['data']['root_examples'] > 0,
    _PREDICT,
  )
  if not all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(update)):
    plain = rule['name'] == 'mean' and rule.get('weights') != 'examples'
    remedy = "aggregator.weights='examples'" if plain else 'another rule'
    raise ValueError(
      f'client.drop_rate={rate}: {rule["name"]} returns an aggregate that is '
      f'not finite when {missing} of {n} clients do not answer, as in round '
      f'{worst + 1}; choose a smaller client.drop_rate or {remedy}'
    )


def check_schedule(schedule: Schedule, num_rounds: int) -> None:
  """Checks that attackers attack in some round of a run.

  Raises:
    ValueError: they do not.
  """
  if not any(schedule.attacks(i + 1) for i in range(num_rounds)):
    raise ValueError(
      f'nobody attacks in rounds 1 to num_rounds={num_rounds}: raise '
      'num_rounds, or change attack.first_round or attack.rounds'
    )
