"""A data set from arrays of one's own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lca.data.dataset import Dataset, Split, as_held
from lca.options import whole

_TO_ONE = (127.5,)


def from_arrays(
  train: tuple[ArrayLike, ArrayLike],
  test: tuple[ArrayLike, ArrayLike],
  num_classes: int | None = None,
  *,
  mean: float | Sequence[float] | None = None,
  std: float | Sequence[float] | None = None,
  name: str = 'arrays',
  owners: ArrayLike | None = None,
) -> Dataset:
  """Makes a data set of inputs and labels.

  An example's input has any shape. Which type it has decides what a model is
  given of it:

  - uint8 numbers are taken for pixels. They stay as they are in memory, or in
    the file of a memory map, and are scaled from 0 to 255 to [-1, 1] on the
    device, unless `mean` and `std` say otherwise. Bytes that are tokens become
    tokens by `inputs.astype(np.int32)`.
  - Floats and other integers, such as tokens, pass as they are, unless `mean`
    and `std` are given. float64 becomes float32 and int64 becomes int32, as in
    `jnp.asarray`; of a memory map this is an error, for it would be read whole.

  Args:
    train: Inputs [N, ...] and integer labels [N], which clients share out among
      them.
    test: Inputs [M, ...] of the same shape and type, and labels [M], which the
      server evaluates on.
    num_classes: Labels lie in [0, num_classes). None is the largest label plus
      one.
    mean: A number, or one for each entry of the inputs' last axis: of images a
      number per channel.
    std: Likewise. A model is given (input - mean) / std.
    name: What messages and records call the data set.
    owners: [N] integers, whose each training example is; the partition
      `natural` makes a client of each owner.

  Returns:
    The data set.

  Raises:
    ValueError: What cannot work, with the split that it is in: labels that are
      no integers or out of range, inputs that are not finite, lengths or shapes
      that differ, and what else `Split` and `Dataset` refuse.

  Examples:
    >>> inputs = np.random.default_rng(0).normal(size=[60, 4])
    >>> labels = np.arange(60) % 3
    >>> data = from_arrays(
    ...   train=(inputs[:40], labels[:40]), test=(inputs[40:], labels[40:]))
    >>> data.train, data.num_classes
    (Split(40 examples of 4, float32), 3)
  """
  splits = (
    _split('train', train, owners),
    _split('test', test, None),
  )
  if num_classes is None:
    num_classes = 1 + max(int(split.labels.max()) for split in splits)
  num_classes = whole(1)('num_classes', num_classes)
  if mean is std is None and splits[0].inputs.dtype == np.uint8:
    mean = std = _TO_ONE
  return Dataset(name, *splits, num_classes, _values(mean), _values(std))


def _split(split: str, given: Any, owners: ArrayLike | None) -> Split:
  try:
    inputs, labels = given
  except (TypeError, ValueError):
    raise ValueError(
      f'{split} must be a pair (inputs, labels), got {type(given).__name__}'
    ) from None
  try:
    if isinstance(inputs, np.ndarray) and not isinstance(inputs, np.memmap):
      inputs = as_held(inputs)
    return Split(inputs, labels, owners)
  except ValueError as error:
    raise ValueError(f'{split}: {error}') from error


def _values(given: float | Sequence[float] | None) -> tuple[float, ...] | None:
  return None if given is None else tuple(np.atleast_1d(given).tolist())
