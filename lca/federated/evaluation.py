"""Tests of a model: exact means over the test set, block by block."""

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

# One block that holds the whole test set stays on the devices. Of several
# blocks, each is read while the one before is tested.
BLOCK_BYTES = 2**28

Block = Callable[[], tuple[jax.Array, jax.Array, jax.Array]]
"""Puts inputs, labels and weights 0 or 1, `[batches, batch, ...]`, on a mesh.

An example of weight 0 only fills up a batch.
"""

Tester = Callable[..., tuple[jax.Array, jax.Array]]
"""`(variables, inputs, labels, weights) -> (sum of losses, sum of correct)`."""


def make_blocks(split: Split, mesh: Mesh, batch_size: int) -> list[Block]:
  """Cuts a test set into blocks of at most `BLOCK_BYTES` of inputs.

  Args:
    split: the test set.
    mesh: with an axis `'clients'`, which shares each block.
    batch_size: examples that a device takes at once.
  """
  devices = mesh.shape[AXIS]
  batch_size = min(batch_size, -(-len(split) // devices))
  at_once = batch_size * devices
  batches = -(-len(split) // at_once)
  spec = split.input_spec
  batch_bytes = at_once * math.prod(spec.shape) * spec.dtype.itemsize
  num_blocks = -(-batches // max(1, BLOCK_BYTES // batch_bytes))
  size = at_once * -(-batches // num_blocks)  # as even as the blocks can be
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
  """Makes the jitted function that tests a model on one block."""

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
  """Tests a model.

  Args:
    test: from `make_tester`.
    variables: of the model, on every device.
    blocks: from `make_blocks`.
    size: of the test set.

  Returns:
    Exact means over the test set: `test_loss` in nats, `test_accuracy`.
  """
  sums, testing = np.zeros(2), (0, 0)
  for block in blocks:
    examples = block()  # read while the block before is tested
    sums += jax.device_get(testing)
    testing = test(variables, *examples)
  loss, correct = sums + jax.device_get(testing)
  return {
    'test_loss': float(loss) / size,
    'test_accuracy': float(correct) / size,
  }
