"""An image classification data set, checked when it is built."""

import dataclasses
import mmap

import jax
import numpy as np

_RESIDENT_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Examples and their labels.

  Args:
    inputs: [N, H, W, C] uint8 pixels; a memory map is fine.
    labels: [N] integer class numbers.
    owners: [N] integers, whose each example is: a writer, a person. None where
      that is not known.

  Raises:
    ValueError: The arrays are empty, of unequal length, or of another type or
      shape.

  Examples:
    >>> Split(np.zeros([3, 8, 8, 1], np.uint8), np.array([0, 2, 1]))
    Split(3 examples of 8x8x1)
  """

  inputs: np.ndarray
  labels: np.ndarray
  owners: np.ndarray | None = None

  def __post_init__(self):
    images = self.inputs
    if images.dtype != np.uint8 or images.ndim != 4:
      raise ValueError(
        'images must be uint8 [N, H, W, C], got '
        f'{images.dtype} {list(images.shape)}'
      )
    self._check_numbers('labels', self.labels)
    if self.owners is not None:
      self._check_numbers('owners', self.owners)
    if not images.size:
      raise ValueError(f'a split without pixels: {list(images.shape)}')

  def _check_numbers(self, field: str, numbers: np.ndarray):
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.ndim != 1:
      raise ValueError(
        f'{field} must be integers [N], got '
        f'{numbers.dtype} {list(numbers.shape)}'
      )
    if len(self.inputs) != len(numbers):
      raise ValueError(f'{len(self.inputs)} images but {len(numbers)} {field}')

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def input_spec(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one example's input."""
    return jax.ShapeDtypeStruct(self.inputs.shape[1:], self.inputs.dtype)

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Copies images.

    A memory map's pages count as memory of the process once they are read;
    those of a map above 256 MiB are let go of.

    Args:
      rows: [k] integers in [0, N); in ascending order a map is read forwards.

    Returns:
      [k, H, W, C] uint8.
    """
    images = self.inputs[rows]
    source = self.inputs.base
    if (
      isinstance(source, mmap.mmap)
      and self.inputs.nbytes > _RESIDENT_BYTES
      # Of a writable private map it would undo what was written.
      and not self.inputs.flags.writeable
      and hasattr(mmap, 'MADV_DONTNEED')
    ):
      source.madvise(mmap.MADV_DONTNEED)
    return images

  def __repr__(self) -> str:
    shape = 'x'.join(map(str, self.inputs.shape[1:]))
    return f'Split({len(self)} examples of {shape})'


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A training and a test split of the same classes.

  Args:
    name: The name that `load` knows it by.
    train: The examples that clients share out among them.
    test: The examples that the server evaluates on.
    num_classes: Labels lie in [0, num_classes).
    mean: One value, or one per channel, in pixel units.
    std: Likewise. A model's input is (pixel - mean) / std.

  Raises:
    ValueError: A label out of range, splits of different image shapes, or a
      mean or std that fits neither one value nor the channels.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    for split in ('train', 'test'):
      self._check_labels(split, getattr(self, split).labels)
    train, test = self.train.inputs.shape[1:], self.test.inputs.shape[1:]
    if train != test:
      raise ValueError(f'train images are {train}, test images {test}')
    for field in ('mean', 'std'):
      if len(getattr(self, field)) not in (1, train[-1]):
        raise ValueError(
          f'{field} needs 1 or {train[-1]} values, got {getattr(self, field)}'
        )
    if min(self.std) <= 0:
      raise ValueError(f'std must be positive, got {self.std}')

  def _check_labels(self, split: str, labels: np.ndarray):
    for label in (labels.min(), labels.max()):
      if not 0 <= label < self.num_classes:
        raise ValueError(
          f'{self.name}: label {label} in the {split} split is not in '
          f'[0, {self.num_classes})'
        )
