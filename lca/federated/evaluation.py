"""Evaluation of a model: exact means over whole sets, block by block."""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.attacks import NO_ATTACK, Attack
from lca.data import FederatedDataset, Split
from lca.federated.attackers import memory_of
from lca.federated.placement import Placement, pad_rows
from lca.models import Classifier
from lca.stacked.sharding import AXIS
from lca.typing import PyTree

BLOCK_BYTES = 2**28
"""The largest size of a block of inputs, over all devices.

A set of examples that fits into one block stays on the devices. Otherwise each
block is read while the block before it is tested.
"""

Block = Callable[[], tuple[jax.Array, jax.Array, jax.Array]]
"""A function that puts inputs, labels and weights of a block on a mesh.

The arrays are `[batches, batch, ...]`. Weights are 1 for examples of the set,
and 0 for rows that only fill up a batch.
"""

Tester = Callable[..., Any]
"""`(variables, inputs, labels, weights) -> sums over the examples of a block`.

The sums are numbers or an array, the same on every device.
"""


class Evaluation:
  """Tests models on the test set and on the examples held out for validation.

  Attributes:
    columns: names of the metrics beside `test_loss` and `test_accuracy`.

  Args:
    classifier: the model and its loss.
    data: the data set, and the indices of the examples for validation.
    placement: the devices that examples are spread over.
    attack: its success with the test set is measured if it has an `on_test`.
    by_class: True measures the accuracy on each class of the test set, too.

  Raises:
    ValueError: the attack cannot change such examples.
  """

  def __init__(
    self,
    classifier: Classifier,
    data: FederatedDataset,
    placement: Placement,
    attack: Attack = NO_ATTACK,
    by_class: bool = False,
  ):
    dataset = data.dataset
    self._classifier, self._placement = classifier, placement
    self._test = make_tester(classifier, placement.mesh)
    self._count = make_counter(classifier, placement.mesh, dataset.num_classes)
    self._sizes: dict[str, int] = {}
    self._blocks: dict[str, list[Block]] = {}
    self._add('test', dataset.test, np.arange(len(dataset.test)))
    if data.validation_indices is not None:
      self._add('validation', dataset.train, data.validation_indices)
    names = [f'{name}_{what}' for name in self._sizes for what in _MEASURED]
    self.columns = names[len(_MEASURED) :]
    self._by_class = [
      f'test_accuracy/{k}' for k in range(dataset.num_classes) if by_class
    ]
    self.columns += self._by_class
    self._attack, self._test_attacked = attack, None
    if attack.on_test is not None:
      self.columns += _OF_ATTACK
      on_test = functools.partial(
        attack.on_test,
        num_classes=dataset.num_classes,
        input_range=dataset.input_range,
      )
      self._test_attacked = make_attack_tester(
        classifier, placement.mesh, on_test
      )
      spec = dataset.test.input_spec
      jax.eval_shape(  # for its checks alone
        on_test,
        jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype),
        jax.ShapeDtypeStruct((1,), dataset.test.labels.dtype),
        **attack.numbers,
        **memory_of(attack, dataset),
      )

  def _add(self, name: str, split: Split, indices: np.ndarray) -> None:
    """Adds a set of examples, or replaces it.

    Args:
      name: of the set.
      split, indices: see `make_blocks`.
    """
    mesh, batch_size = self._placement.mesh, self._placement.eval_batch_size
    self._sizes[name] = len(indices)
    self._blocks[name] = make_blocks(split, indices, mesh, batch_size)

  def held_out(self, data: FederatedDataset) -> 'Evaluation':
    """Returns the evaluation with other examples held out for validation.

    Args:
      data: the same data set, spread in another way.
    """
    other = copy.copy(self)
    if data.validation_indices is not None:
      other._sizes, other._blocks = dict(self._sizes), dict(self._blocks)
      other._add('validation', data.dataset.train, data.validation_indices)
    return other

  def evaluate(
    self, variables: PyTree, known: Mapping[str, PyTree] | None = None
  ) -> dict[str, float]:
    """Tests a model on every set.

    Args:
      variables: the model, with a copy on every device.
      known: arguments of the attack's `on_test`, such as its memory.

    Returns:
      `test_loss`, the mean loss in nats, and `test_accuracy`, the fraction of
      right predictions. If examples were held out for validation,
      `validation_loss` and `validation_accuracy` follow. With `by_class` there
      are `test_accuracy/0` to the last class, NaN for a class without test
      examples. If the attack has an
      `on_test`, there are two shares of the test examples that count for it,
      as it changes them: `attack_success_rate`, of which the model predicts the
      target, and `backdoor_accuracy`, of which it predicts the true label. Both
      are NaN if no example counts.
    """
    measured = {}
    for name, blocks in self._blocks.items():
      sums = _sum_blocks(self._test, variables, blocks) / self._sizes[name]
      for what, mean in zip(_MEASURED, sums.tolist(), strict=True):
        measured[f'{name}_{what}'] = mean
    if self._by_class:
      counts = self.confusion(variables)
      with np.errstate(invalid='ignore'):  # NaN for a class without examples
        shares = np.diagonal(counts) / counts.sum(axis=1)
      measured |= zip(self._by_class, shares.tolist(), strict=True)
    if self._test_attacked is not None:
      numbers = dict(self._attack.numbers) | dict(known or {})
      test = functools.partial(self._test_attacked, numbers)
      counted, *hits = _sum_blocks(test, variables, self._blocks['test'])
      for name, sum_ in zip(_OF_ATTACK, hits, strict=True):
        measured[name] = float(sum_ / counted) if counted else math.nan
    return measured

  def confusion(self, variables: PyTree) -> np.ndarray:
    """Counts the test examples by class and by the class that a model predicts.

    Args:
      variables: the model, with a copy on every device.

    Returns:
      `[classes, logits]` integers: the entry in row i and column j counts the
      examples of class i for which the j-th logit is the largest. A model has
      one logit for each class, or more.
    """
    counts = _sum_blocks(self._count, variables, self._blocks['test'])
    return counts.astype(np.int64)


_MEASURED = ('loss', 'accuracy')
_OF_ATTACK = ['attack_success_rate', 'backdoor_accuracy']


def make_blocks(
  split: Split, indices: np.ndarray, mesh: Mesh, batch_size: int
) -> list[Block]:
  """Cuts a set of examples into blocks of at most `BLOCK_BYTES` of inputs.

  Args:
    split: the split that holds the examples.
    indices: `[k]` rows of the split that make the set, such as all rows of the
      test set, in ascending order.
    mesh: mesh with an axis `'clients'`, over which each block is spread.
    batch_size: number of examples that a device tests at once.

  Returns:
    The blocks, in the order of the indices. A single block is kept on the
    devices after its first use.
  """
  devices = mesh.shape[AXIS]
  batch_size = min(batch_size, -(-len(indices) // devices))
  total_batch = batch_size * devices  # over all devices
  batches = -(-len(indices) // total_batch)
  spec = split.input_spec
  batch_bytes = total_batch * math.prod(spec.shape) * spec.dtype.itemsize
  num_blocks = -(-batches // max(1, BLOCK_BYTES // batch_bytes))
  size = total_batch * -(-batches // num_blocks)  # examples in a block
  sharding = NamedSharding(mesh, P(AXIS))

  def place(start):
    rows = indices[start : start + size]
    weights = np.ones(len(rows), np.float32)
    return tuple(
      jax.device_put(
        pad_rows(x, size).reshape(-1, batch_size, *x.shape[1:]), sharding
      )
      for x in (split.read(rows), split.labels[rows], weights)
    )

  starts = range(0, len(indices), size)
  blocks = [functools.partial(place, start) for start in starts]
  return blocks if len(blocks) > 1 else [functools.cache(blocks[0])]


def make_tester(classifier: Classifier, mesh: Mesh) -> Tester:
  """Returns a jitted function that tests a model on one block.

  Args:
    classifier: computes sums of losses and of right predictions for a batch.
    mesh: mesh with an axis `'clients'`, over which the blocks are spread.
  """

  def test(variables, *examples):
    sums = lax.map(lambda batch: classifier.test(variables, *batch), examples)
    return jax.tree.map(jnp.sum, sums)

  return _on_blocks(test, mesh)


def make_attack_tester(
  classifier: Classifier,
  mesh: Mesh,
  on_test: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
) -> Tester:
  """Returns a jitted function that measures an attack's success on one block.

  Args:
    classifier: computes the logits of a batch.
    mesh: mesh with an axis `'clients'`, over which the blocks are spread.
    on_test: see `lca.attacks.Attack`; the facts about the data are bound.

  Returns:
    A function that takes the attack's numbers before a tester's arguments. Its
    sums are the number of examples that count, and for how many of them the
    model predicts the target, and the true label.
  """

  def test(variables, inputs, labels, weights, numbers):
    def of_batch(batch):
      inputs, labels, weights = batch
      changed, targets, counted = on_test(inputs, labels, **numbers)
      predicted = jnp.argmax(classifier.logits(variables, changed), axis=-1)
      hits = jnp.stack([counted, predicted == targets, predicted == labels])
      return jnp.sum(weights * (counted & hits), axis=1)

    return jnp.sum(lax.map(of_batch, (inputs, labels, weights)), axis=0)

  measure = _on_blocks(test, mesh, shared=1)
  return lambda numbers, *arguments: measure(*arguments, numbers)


def make_counter(
  classifier: Classifier, mesh: Mesh, num_classes: int
) -> Tester:
  """Returns a jitted function that counts a block's examples by prediction.

  Args:
    classifier: computes the logits of a batch.
    mesh: mesh with an axis `'clients'`, over which the blocks are spread.
    num_classes: number of classes of the labels.

  Returns:
    A function whose result is `[classes, logits]`, see `Evaluation.confusion`.
  """

  def count(variables, inputs, labels, weights):
    width = jax.eval_shape(classifier.logits, variables, inputs[0]).shape[-1]

    def predict(batch):
      return jnp.argmax(classifier.logits(variables, batch), axis=-1)

    # One addition of the whole block: a matrix for each batch would take as
    # many times the memory as there are batches.
    counts = jnp.zeros((num_classes, width), jnp.int32)
    predicted = lax.map(predict, inputs)
    return counts.at[labels, predicted].add(weights.astype(jnp.int32))

  return _on_blocks(count, mesh)


def _on_blocks(function: Tester, mesh: Mesh, shared: int = 0) -> Tester:
  """Returns a jitted function that sums a function's results over devices.

  Args:
    function: works on the part of a block that a device has.
    mesh: mesh with an axis `'clients'`.
    shared: number of arguments after the block, which every device has whole.
  """

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(AXIS), P(AXIS), P(AXIS), *[P()] * shared),
    out_specs=P(),
    check_vma=False,
  )
  def summed(*arguments):
    return lax.psum(function(*arguments), AXIS)

  return summed


def _sum_blocks(
  test: Tester, variables: PyTree, blocks: Sequence[Block]
) -> np.ndarray:
  """Returns the sums of a tester's results over all blocks, in float64.

  Args:
    test: function from `make_tester` or `make_counter`.
    variables: the model, with a copy on every device.
    blocks: blocks from `make_blocks`.
  """
  sums, running = np.zeros(()), 0
  for block in blocks:
    examples = block()  # read while the devices test the block before
    # Waits for the block before.
    sums = sums + np.asarray(jax.device_get(running), float)
    running = test(variables, *examples)
  return sums + np.asarray(jax.device_get(running), float)
