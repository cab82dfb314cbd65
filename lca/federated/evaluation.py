"""Evaluation of a model: exact means over the test set, block by block."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.data import Split
from lca.federated.placement import pad_rows
from lca.models import Classifier
from lca.stacked.sharding import AXIS
from lca.typing import PyTree

BLOCK_BYTES = 2**28
"""The largest size of a block of test inputs, over all devices.

A test set that fits into one block stays on the devices. Otherwise each block
is read while the block before it is tested.
"""

Block = Callable[[], tuple[jax.Array, jax.Array, jax.Array]]
"""A function that puts inputs, labels and weights of a block on a mesh.

The arrays are `[batches, batch, ...]`. Weights are 1 for examples of the test
set, and 0 for rows that only fill up a batch.
"""

Tester = Callable[..., tuple[jax.Array, jax.Array]]
"""`(variables, inputs, labels, weights) -> (sum of losses, number correct)`."""


def make_blocks(split: Split, mesh: Mesh, batch_size: int) -> list[Block]:
  """Cuts a test set into blocks of at most `BLOCK_BYTES` of inputs.

  Args:
    split: the test set.
    mesh: mesh with an axis `'clients'`, over which each block is spread.
    batch_size: number of examples that a device tests at once.

  Returns:
    The blocks, in the order of the test set. A single block is kept on the
    devices after its first use.
  """
  devices = mesh.shape[AXIS]
  batch_size = min(batch_size, -(-len(split) // devices))
  total_batch = batch_size * devices  # over all devices
  batches = -(-len(split) // total_batch)
  spec = split.input_spec
  batch_bytes = total_batch * math.prod(spec.shape) * spec.dtype.itemsize
  num_blocks = -(-batches // max(1, BLOCK_BYTES // batch_bytes))
  size = total_batch * -(-batches // num_blocks)  # examples in a block
  sharding = NamedSharding(mesh, P(AXIS))

  def place(start):
    rows = np.arange(start, min(start + size, len(split)))
    weights = np.ones(len(rows), np.float32)
    return tuple(
      jax.device_put(
        pad_rows(x, size).reshape(-1, batch_size, *x.shape[1:]), sharding
      )
      for x in (split.read(rows), split.labels[rows], weights)
    )

  starts = range(0, len(split), size)
  blocks = [functools.partial(place, start) for start in starts]
  return blocks if len(blocks) > 1 else [functools.cache(blocks[0])]


def make_tester(classifier: Classifier, mesh: Mesh) -> Tester:
  """Returns a jitted function that tests a model on one block.

  Args:
    classifier: computes sums of losses and of right predictions for a batch.
    mesh: mesh with an axis `'clients'`, over which the blocks are spread.
  """

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(AXIS), P(AXIS), P(AXIS)),
    out_specs=P(),
    check_vma=False,
  )
  def test(variables, inputs, labels, weights):
    sums = lax.map(
      lambda batch: classifier.test(variables, *batch),
      (inputs, labels, weights),
    )
    return lax.psum(jax.tree.map(jnp.sum, sums), AXIS)

  return test


def evaluate(
  test: Tester, variables: PyTree, blocks: Sequence[Block], size: int
) -> dict[str, float]:
  """Tests a model on the whole test set.

  Args:
    test: function from `make_tester`.
    variables: the model, with a copy on every device.
    blocks: blocks from `make_blocks`.
    size: number of examples in the test set.

  Returns:
    `test_loss`, the mean loss in nats, and `test_accuracy`, the fraction of
    right predictions.
  """
  sums, running = np.zeros(2), (0, 0)
  for block in blocks:
    examples = block()  # read while the devices test the block before
    sums += jax.device_get(running)  # wait for the block before
    running = test(variables, *examples)
  loss, correct = sums + jax.device_get(running)
  return {
    'test_loss': float(loss) / size,
    'test_accuracy': float(correct) / size,
  }
