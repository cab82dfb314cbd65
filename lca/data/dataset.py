"""Classification data sets, whose arrays are checked on construction."""

import dataclasses
import mmap

import jax
import numpy as np

_RESIDENT_BYTES = 2**28  # memory maps above this size release their pages
_BLOCK_BYTES = 2**24  # the finiteness check reads this much at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Examples and their labels.

  Lists and the arrays of JAX, PyTorch or pandas are converted to NumPy arrays.
  Their 64-bit inputs become float32 or int32, as in `jnp.asarray`.

  Attributes:
    inputs: `[N, ...]` inputs of the model: uint8 images `[N, H, W, C]`, float32
      features, int32 tokens, or numbers of another dtype that JAX does not
      convert. A memory map stays a memory map.
    labels: `[N]` integer class numbers.
    owners: `[N]` integers that identify the owner of each example, such as its
      writer; None if the owners are unknown.

  Raises:
    ValueError: the arrays are empty, of unequal length, or of another dtype or
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
      except ValueError as error:  # such as nested lists of unequal lengths
        raise ValueError(
          f'{field} cannot be converted to an array: {error}'
        ) from error
      if field == 'inputs':
        array = to_jax_dtype(array)
      object.__setattr__(self, field, array)  # the dataclass is frozen
    self._check_inputs()
    self._check_integers('labels', self.labels)
    if self.owners is not None:
      self._check_integers('owners', self.owners)

  def _check_inputs(self):
    """Raises a ValueError unless the inputs are finite numbers `[N, ...]`."""
    inputs = self.inputs
    got = f'{inputs.dtype} {list(inputs.shape)}'
    if inputs.dtype == bool or not _is_number(inputs.dtype):
      raise ValueError(
        'inputs must be numbers, such as uint8 images, float32 features or '
        f'int32 tokens, got {got}: convert them, for example by '
        'inputs.astype(np.float32)'
      )
    jax_dtype = jax.dtypes.canonicalize_dtype(inputs.dtype)
    if jax_dtype != inputs.dtype:
      raise ValueError(
        'inputs must be uint8, int32, float32 or another dtype that JAX does '
        f'not convert, got {got}: convert them by '
        f'inputs.astype(np.{jax_dtype})'
      )
    if inputs.ndim < 2:
      raise ValueError(
        f'inputs must be [N, ...], an array for each example, got {got}; if '
        'each example is a single number, pass inputs[:, None]'
      )
    if not inputs.size:
      raise ValueError(f'inputs must not be empty, got {got}')
    if np.issubdtype(inputs.dtype, np.integer):
      return
    # Floats must be finite. They are read block by block because a memory map
    # may be larger than the memory.
    size = len(inputs)
    step = max(1, _BLOCK_BYTES * size // inputs.nbytes)
    for start in range(0, size, step):
      block = self.read(np.arange(start, min(start + step, size)))
      finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
      if not finite.all():
        raise ValueError(
          f'inputs must be finite, but example {start + np.argmin(finite)} of '
          f'these {inputs.dtype} numbers has a NaN or an infinity: remove '
          'such examples, or replace these values'
        )

  def _check_integers(self, field: str, numbers: np.ndarray):
    """Raises a ValueError unless a field holds one integer per input."""
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.ndim != 1:
      one_hot = f'{field}.argmax(1)' if numbers.ndim == 2 else ''
      raise ValueError(
        f'{field} must be integers [N], got {numbers.dtype} '
        f'{list(numbers.shape)}: convert them, for example by '
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
    """The shape and dtype of the input of one example."""
    return jax.ShapeDtypeStruct(self.inputs.shape[1:], self.inputs.dtype)

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Returns a copy of some rows of the inputs.

    The pages of a memory map count as memory of the process once they have been
    read. If the map is larger than 256 MiB, its pages are released again.

    Args:
      rows: `[k]` integers in [0, N). Ascending rows let a memory map be read in
        the order of its file.

    Returns:
      `[k, ...]` of the inputs' dtype.
    """
    inputs = self.inputs[rows]
    source = self.inputs.base
    if (
      isinstance(source, mmap.mmap)
      and self.inputs.nbytes > _RESIDENT_BYTES
      # Releasing the pages of a copy-on-write map (np.memmap mode 'c') would
      # discard what was written to them.
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


def to_jax_dtype(array: np.ndarray) -> np.ndarray:
  """Converts an array to the dtype that JAX would give it.

  float64 becomes float32 and int64 becomes int32, unless `jax_enable_x64` is
  set. An array of a dtype that JAX does not convert is returned uncopied.

  Args:
    array: inputs of any shape and dtype.

  Raises:
    ValueError: an integer does not fit into the new dtype.
  """
  if not _is_number(array.dtype):
    return array
  jax_dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  if jax_dtype == array.dtype:
    return array
  if np.issubdtype(jax_dtype, np.integer) and array.size:
    low, high = array.min(), array.max()
    if low < np.iinfo(jax_dtype).min or high > np.iinfo(jax_dtype).max:
      raise ValueError(
        f'inputs from {low} to {high} do not fit into {jax_dtype}, the widest '
        'integers that JAX holds: shift or scale them, or set jax_enable_x64'
      )
  # A float that overflows becomes infinite, and Split then refuses it.
  with np.errstate(over='ignore'):
    return array.astype(jax_dtype)


def _is_number(dtype: np.dtype) -> bool:
  """Returns True for booleans, integers and floats, including bfloat16."""
  return any(
    jax.dtypes.issubdtype(dtype, kind)
    for kind in (np.bool_, np.integer, np.floating)
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A training split and a test split of the same classes.

  Attributes:
    name: the name in messages and records; for built-in data sets also the
      argument of `load`.
    train: the examples that are shared out among the clients.
    test: the examples that the server evaluates on.
    num_classes: the number of classes; labels lie in [0, num_classes).
    mean: one value, or one for each entry of the inputs' last axis. For images
      this is one value per channel, in pixel units.
    std: like `mean`. A model receives `(input - mean) / std`, or the unchanged
      inputs if both are None.
    input_range: the smallest and the largest value that an input can have, such
      as black and white of an image. An attack's trigger reads it. By default
      (0, 255) for uint8 and (0, 1) for all other dtypes.

  Raises:
    ValueError: a label is out of range, the splits differ in shape or dtype,
      `mean` or `std` has neither one value nor one per entry of the last axis,
      or `input_range` is no range.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  input_range: tuple[float, float] | None = None

  def __post_init__(self):
    if self.input_range is None:
      white = 255.0 if self.train.inputs.dtype == np.uint8 else 1.0
      object.__setattr__(self, 'input_range', (0.0, white))
    low, high = self.input_range
    if not low < high:
      raise ValueError(f'input_range must be (low, high), got {(low, high)}')
    for split in ('train', 'test'):
      labels = getattr(self, split).labels
      for label in (labels.min(), labels.max()):
        if not 0 <= label < self.num_classes:
          raise ValueError(
            f'{self.name}: label {label} in the {split} split is not in '
            f'[0, {self.num_classes}): classes are numbered from 0 to '
            'num_classes - 1'
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
