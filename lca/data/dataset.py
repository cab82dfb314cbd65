"""A classification data set, checked when it is built."""

import dataclasses
import mmap

import jax
import numpy as np

_RESIDENT_BYTES = 2**28
_BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Examples and their labels.

  Lists, and arrays of JAX, PyTorch or pandas, are taken as well: their 64-bit
  inputs become float32 or int32, as in `jnp.asarray`.

  Args:
    inputs: [N, ...], what a model is given: uint8 images [N, H, W, C], float32
      features, int32 tokens, or numbers of another type that JAX holds as it
      is. A memory map stays one.
    labels: [N] integer class numbers.
    owners: [N] integers, whose each example is: a writer, a person. None where
      that is not known.

  Raises:
    ValueError: The arrays are empty, of unequal length, or of another type or
      shape; or an input is not finite.

  Examples:
    >>> Split(np.zeros([3, 8, 8, 1], np.uint8), np.array([0, 2, 1]))
    Split(3 examples of 8x8x1)
    >>> Split([[0.5, 1.5], [2.5, 3.5]], [0, 1])
    Split(2 examples of 2, float32)
  """

  inputs: np.ndarray
  labels: np.ndarray
  owners: np.ndarray | None = None

  def __post_init__(self):
    for field in ('inputs', 'labels', 'owners'):
      value = getattr(self, field)
      if value is None or isinstance(value, np.ndarray):
        continue
      try:
        array = np.asarray(value)
      except ValueError as error:  # of lists that are not all equally long
        raise ValueError(f'{field} make no array: {error}') from error
      held = as_held(array) if field == 'inputs' else array
      object.__setattr__(self, field, held)
    self._check_inputs()
    self._check_integers('labels', self.labels)
    if self.owners is not None:
      self._check_integers('owners', self.owners)

  def _check_inputs(self):
    inputs = self.inputs
    got = f'{inputs.dtype} {list(inputs.shape)}'
    if inputs.dtype == bool or not _is_number(inputs.dtype):
      raise ValueError(
        'inputs must be numbers, such as uint8 images, float32 features or '
        f'int32 tokens, got {got}: convert them, as by '
        'inputs.astype(np.float32)'
      )
    held = jax.dtypes.canonicalize_dtype(inputs.dtype)
    if held != inputs.dtype:
      raise ValueError(
        'inputs must be uint8, int32, float32 or another type that JAX holds '
        f'as it is, got {got}: convert them by inputs.astype(np.{held})'
      )
    if inputs.ndim < 2:
      raise ValueError(
        f'inputs must be [N, ...], an array for each example, got {got}; of N '
        'single numbers make inputs[:, None]'
      )
    if not inputs.size:
      raise ValueError(f'a split without pixels or other numbers: {got}')
    if np.issubdtype(inputs.dtype, np.integer):
      return
    # Floats must be finite. They are read block by block, for a memory map may
    # be larger than memory.
    size = len(inputs)
    step = max(1, _BLOCK_BYTES * size // inputs.nbytes)
    for start in range(0, size, step):
      block = self.read(np.arange(start, min(start + step, size)))
      finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
      if not finite.all():
        raise ValueError(
          f'inputs must be finite, but example {start + np.argmin(finite)} of '
          f'these {inputs.dtype} numbers has a NaN or an infinity: leave '
          'such examples out, or fill the gaps'
        )

  def _check_integers(self, field: str, numbers: np.ndarray):
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.ndim != 1:
      one_hot = f'{field}.argmax(1)' if numbers.ndim == 2 else ''
      raise ValueError(
        f'{field} must be integers [N], got {numbers.dtype} '
        f'{list(numbers.shape)}: convert them, as by '
        f'{one_hot or f"{field}.astype(int)"}'
      )
    if len(self.inputs) != len(numbers):
      images = self.inputs.dtype == np.uint8 and self.inputs.ndim == 4
      raise ValueError(
        f'{len(self.inputs)} {"images" if images else "inputs"} but '
        f'{len(numbers)} {field}'
      )

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def input_spec(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one example's input."""
    return jax.ShapeDtypeStruct(self.inputs.shape[1:], self.inputs.dtype)

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Copies inputs.

    A memory map's pages count as memory of the process once they are read;
    those of a map above 256 MiB are let go of.

    Args:
      rows: [k] integers in [0, N); in ascending order a map is read forwards.

    Returns:
      [k, ...], of the inputs' dtype.
    """
    inputs = self.inputs[rows]
    source = self.inputs.base
    if (
      isinstance(source, mmap.mmap)
      and self.inputs.nbytes > _RESIDENT_BYTES
      # Of a writable private map it would undo what was written.
      and not self.inputs.flags.writeable
      and hasattr(mmap, 'MADV_DONTNEED')
    ):
      source.madvise(mmap.MADV_DONTNEED)
    return inputs

  def __repr__(self) -> str:
    shape = 'x'.join(map(str, self.inputs.shape[1:]))
    dtype = self.inputs.dtype
    kind = '' if dtype == np.uint8 else f', {dtype}'
    return f'Split({len(self)} examples of {shape}{kind})'


def as_held(array: np.ndarray) -> np.ndarray:
  """Returns an array in the type that JAX holds it in, as `jnp.asarray` does.

  float64 becomes float32 and int64 becomes int32, unless `jax_enable_x64` is
  set. An array that has such a type already comes back itself.

  Raises:
    ValueError: an integer does not fit into the type.
  """
  if not _is_number(array.dtype):
    return array
  held = jax.dtypes.canonicalize_dtype(array.dtype)
  if held == array.dtype:
    return array
  if np.issubdtype(held, np.integer) and array.size:
    low, high = array.min(), array.max()
    if low < np.iinfo(held).min or high > np.iinfo(held).max:
      raise ValueError(
        f'inputs from {low} to {high} do not fit into {held}, the widest '
        'integers that JAX holds'
      )
  # What overflows is an infinity, which Split refuses.
  with np.errstate(over='ignore'):
    return array.astype(held)


def _is_number(dtype: np.dtype) -> bool:
  """True for booleans, integers and floats, bfloat16 among them."""
  return any(
    jax.dtypes.issubdtype(dtype, kind)
    for kind in (np.bool_, np.integer, np.floating)
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A training and a test split of the same classes.

  Args:
    name: The name that `load` knows it by.
    train: The examples that clients share out among them.
    test: The examples that the server evaluates on.
    num_classes: Labels lie in [0, num_classes).
    mean: One value, or one for each entry of the inputs' last axis: of images a
      value per channel, in pixel units.
    std: Likewise. A model's input is (input - mean) / std. If both are None, a
      model is given the inputs as they are.

  Raises:
    ValueError: A label out of range, splits of different shapes or types, or a
      mean or std that fits neither one value nor the last axis.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None

  def __post_init__(self):
    for split in ('train', 'test'):
      labels = getattr(self, split).labels
      for label in (labels.min(), labels.max()):
        if not 0 <= label < self.num_classes:
          raise ValueError(
            f'{self.name}: label {label} in the {split} split is not in '
            f'[0, {self.num_classes}): classes are numbered from 0, and '
            'num_classes is how many there are'
          )
    train, test = self.train.input_spec, self.test.input_spec
    if train != test:
      raise ValueError(
        f'train inputs are {train.dtype} {train.shape}, test inputs '
        f'{test.dtype} {test.shape}'
      )
    if (self.mean is None) != (self.std is None):
      raise ValueError(
        'mean and std go together: give both or neither, got '
        f'mean={self.mean}, std={self.std}'
      )
    if self.mean is None:
      return
    width = train.shape[-1]
    for field in ('mean', 'std'):
      if len(getattr(self, field)) not in (1, width):
        raise ValueError(
          f'{field} needs 1 or {width} values, got {getattr(self, field)}'
        )
    if min(self.std) <= 0:
      raise ValueError(f'std must be positive, got {self.std}')
