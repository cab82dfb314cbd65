"""Trained models: those that `simulate` returns, and those of finished runs.

    run = load_run('runs/x')
    logits = run.predict(inputs)

`lca.experiment.model_files` describes the files that runs keep models in.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from lca import models
from lca.experiment import kept_models
from lca.experiment.reading import CLASSIFIER_KEYS
from lca.experiment.summary import (
  Metrics,
  read_metrics,
  read_summary,
)
from lca.models import Classifier
from lca.typing import PyTree


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
  """A trained model, which predicts.

  Attributes:
    variables: the model's variables, a Flax dict of NumPy arrays.
    classifier: the model, and how its inputs are prepared.
    input_spec: shape and dtype of one input.
    batch_size: examples that `predict` computes at once.
  """

  variables: PyTree
  classifier: Classifier
  input_spec: jax.ShapeDtypeStruct
  batch_size: int

  @property
  def module(self) -> nn.Module:
    """The model as a Flax module."""
    return self.classifier.module

  @functools.cached_property
  def _logits(self) -> Callable[[PyTree, jax.Array], jax.Array]:
    return jax.jit(self.classifier.logits)

  def predict(self, inputs: ArrayLike) -> np.ndarray:
    """Returns the model's logits `[k, classes]`, computed batch by batch.

    Args:
      inputs: `[k, ...]`, like the inputs of the data set.

    Raises:
      ValueError: the inputs have another shape or kind of dtype than those of
        the data set.
    """
    inputs, like = np.asarray(inputs), self.input_spec
    if inputs.shape[1:] != like.shape or inputs.dtype.kind != like.dtype.kind:
      raise ValueError(
        f'the model was trained on {like.dtype} {list(like.shape)}, got '
        f'{inputs.dtype} {list(inputs.shape)}'
      )
    inputs = inputs.astype(like.dtype)
    size = min(self.batch_size, max(1, len(inputs)))
    variables, results = jax.device_put(self.variables), []
    for start in range(0, max(1, len(inputs)), size):
      block = inputs[start : start + size]
      # All batches are padded to one shape, so that one program is compiled.
      padded = np.zeros((size, *like.shape), like.dtype)
      padded[: len(block)] = block
      logits = self._logits(variables, padded)
      results.append(np.asarray(logits)[: len(block)])
    return np.concatenate(results)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LoadedRun(TrainedModel):
  """A finished run that was loaded from its directory, and its model.

  Attributes:
    path: the directory.
    config: the config as nested dicts.
    metrics: the columns of `metrics.csv` by name, each `[num_rounds]`; NaN
      where a round has no entry.
    summary: `num_rounds` and the five metrics of the paper's tables.
    round: the round after which the model was taken, counted from 1.
    chosen_by: the metric that this round was chosen by; '' for the last round.
    note: a sentence that says which model this is.
  """

  path: pathlib.Path
  config: dict[str, Any]
  metrics: Metrics
  summary: dict[str, Any]
  round: int
  chosen_by: str
  note: str

  def __repr__(self) -> str:
    name = type(self.module).__name__
    return f'LoadedRun({str(self.path)!r}, {name}: {self.note})'


def load_run(
  directory: str | os.PathLike,
  module: nn.Module | None = None,
  *,
  best: bool = False,
) -> LoadedRun:
  """Loads the model and the metrics of a finished run.

  The data set is not read, and nothing of the training is set up.

  Args:
    directory: of the run: a `--workdir` of `main.py`, `WORKDIR/ID` of a sweep,
      or the `workdir` of `simulate`.
    module: the Flax module that was trained. None builds it from the run's
      config, which names a model of `lca.models.MODELS`. A run of `simulate`
      was given an object, and needs it here again.
    best: True loads the model that `checkpoint.best` has kept; False, the
      default, that of the last round.

  Returns:
    The run. Its `predict` returns the same logits as the result of `simulate`.

  Raises:
    ValueError: the directory holds no finished run, or the run has no such
      model; a file is damaged; the module is needed, or does not fit.
    TypeError: the module is not a Flax module.

  Examples:
    >>> import tempfile
    >>> import lca, lca.data
    >>> from lca.experiment import simulate
    >>> digits = lca.data.load('digits')
    >>> cnn = models.CNN(10, features=(2,), hidden=())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   result = simulate(  # doctest: +ELLIPSIS
    ...     digits, cnn, lca.median, num_clients=5, clients_per_round=5,
    ...     num_rounds=1, local_epochs=1, workdir=folder)
    ...   run = load_run(folder, cnn)
    median; no attack; CNN on digits, iid; 5 of 5 ...
    >>> inputs = digits.test.inputs[:7]
    >>> bool(np.array_equal(run.predict(inputs), result.predict(inputs)))
    True
    >>> run.note
    'the model after the last round, 1'
  """
  path, config = kept_models.find(directory)
  tensors, about = kept_models.read(path, config['checkpoint'], best)
  if module is None:
    module = _module(path, config['model'], about['num_classes'])
  mean, std = (
    None if about[key] is None else tuple(about[key]) for key in ('mean', 'std')
  )
  classifier = Classifier(
    module, mean, std, resize=about['resize'], crop=about['crop']
  )
  inputs = about['inputs']
  input_spec = jax.ShapeDtypeStruct(
    tuple(inputs['shape']), jnp.dtype(inputs['dtype'])
  )
  return LoadedRun(
    variables=kept_models.arrange(
      path,
      tensors,
      jax.eval_shape(lambda: classifier.init(jax.random.key(0), input_spec)),
      f'the module {type(module).__name__}',
      'give the module that was trained',
    ),
    classifier=classifier,
    input_spec=input_spec,
    batch_size=config['eval']['batch_size'],
    path=path,
    config=config,
    metrics=read_metrics(path),
    summary=read_summary(path),
    round=about['round'],
    chosen_by=about['chosen_by'],
    note=about['note'],
  )


def _module(
  path: pathlib.Path, keys: Mapping[str, Any], num_classes: int
) -> nn.Module:
  """Builds the module of a run from the section `model` of its config.

  Raises:
    ValueError: the section describes an object that `simulate` was given, or
      the model is not registered in this process.
  """
  name = keys['name']
  if 'module' in keys:  # as in `lca.experiment.names.of_module`
    raise ValueError(
      f'{path} is a run of simulate, which was given a {name} of the Python '
      f'module {keys["module"]}: give it here, too, as in '
      f'load_run({str(path)!r}, {name}(...))'
    )
  if name not in models.MODELS:
    raise ValueError(
      f'the model {name!r} of {path} is not registered here: execute the file '
      'that registers it, as --load=FILE does, with '
      'lca.experiment.extensions.load_file(FILE), or give the module as '
      f'load_run({str(path)!r}, MODULE)'
    )
  options = {k: v for k, v in keys.items() if k not in CLASSIFIER_KEYS}
  return models.make(options, num_classes)
