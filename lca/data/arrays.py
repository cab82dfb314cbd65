"""Data sets from your own arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lca.data.dataset import Dataset, Split, to_jax_dtype
from lca.options import whole

_HALF_PIXEL_RANGE = (127.5,)  # as mean and std, maps [0, 255] to [-1, 1]


def from_arrays(
  train: tuple[ArrayLike, ArrayLike],
  test: tuple[ArrayLike, ArrayLike],
  num_classes: int | None = None,
  *,
  mean: float | Sequence[float] | None = None,
  std: float | Sequence[float] | None = None,
  name: str = 'arrays',
  owners: ArrayLike | None = None,
  input_range: tuple[float, float] | None = None,
) -> Dataset:
  """Makes a data set of inputs and labels.

  The input of an example may have any shape. Its dtype decides what the model
  receives:

  - uint8 inputs are treated as pixels. They stay uint8 in memory, or in the
    file of a memory map, and are scaled from [0, 255] to [-1, 1] on the device,
    unless `mean` and `std` are given. If your bytes are tokens and not pixels,
    pass `inputs.astype(np.int32)`.
  - Floats and other integers, such as tokens, are not scaled unless `mean` and
    `std` are given. float64 becomes float32 and int64 becomes int32, as in
    `jnp.asarray`. For a memory map such a conversion is an error, because it
    would read the whole file into memory.

  Args:
    train: inputs `[N, ...]` and integer labels `[N]`, which are shared out
      among the clients.
    test: inputs `[M, ...]` of the same shape and dtype, and labels `[M]`, which
      the server evaluates on.
    num_classes: the number of classes; labels lie in [0, num_classes). None
      takes the largest label plus one.
    mean: one number, or one for each entry of the inputs' last axis. For images
      this is one number per channel.
    std: like `mean`. A model receives `(input - mean) / std`.
    name: the name of the data set in messages and records.
    owners: `[N]` integers that identify the owner of each training example; the
      partition `natural` makes one client per owner.
    input_range: see `Dataset`.

  Returns:
    The data set.

  Raises:
    ValueError: the arrays do not make a data set: labels are not integers or
      out of range, inputs are not finite, lengths or shapes differ, or `Split`
      or `Dataset` refuses them for another reason. The message names the split.

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
    mean = std = _HALF_PIXEL_RANGE
  return Dataset(
    name, *splits, num_classes, _to_tuple(mean), _to_tuple(std), input_range
  )


def _split(name: str, pair: Any, owners: ArrayLike | None) -> Split:
  """Makes a split of `(inputs, labels)`; errors begin with the split's name."""
  try:
    inputs, labels = pair
  except (TypeError, ValueError):
    raise ValueError(
      f'{name} must be a pair (inputs, labels), got {type(pair).__name__}'
    ) from None
  try:
    if isinstance(inputs, np.ndarray) and not isinstance(inputs, np.memmap):
      inputs = to_jax_dtype(inputs)
    return Split(inputs, labels, owners)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def _to_tuple(
  values: float | Sequence[float] | None,
) -> tuple[float, ...] | None:
  return None if values is None else tuple(np.atleast_1d(values).tolist())
