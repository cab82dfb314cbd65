"""Triggers: changes of images that a backdoored model reacts to.

A trigger is a function from pixels `[..., H, W, C]` in [0, 1] to such pixels.
`on_images` applies it to images of any range, before they are normalised.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lca import options

Trigger = Callable[[jax.Array], jax.Array]

Corner = Literal['top_left', 'top_right', 'bottom_left', 'bottom_right']


def on_images(
  trigger: Trigger, images: jax.Array, input_range: tuple[float, float]
) -> jax.Array:
  """Applies a trigger to images.

  Args:
    trigger: changes pixels in [0, 1].
    images: `[..., H, W, C]` of any dtype.
    input_range: the values of the images that stand for 0 and 1.

  Returns:
    Images of the same shape and dtype; integers are rounded. Pixels that the
    trigger leaves unchanged keep their value.

  Raises:
    ValueError: the inputs are no images.
  """
  if images.ndim < 3:
    raise ValueError(
      'a trigger changes images [..., H, W, C], got inputs '
      f'{images.dtype}{list(images.shape)}'
    )
  low, high = input_range
  before = (images.astype(jnp.float32) - low) / (high - low)
  after = trigger(before)
  if after.shape != before.shape:
    raise ValueError(
      f'a trigger must return images of the same shape, {list(before.shape)}, '
      f'got {list(after.shape)}'
    )
  changed = low + (high - low) * after
  if jnp.issubdtype(images.dtype, jnp.integer):
    changed = jnp.round(changed)
  return jnp.where(after == before, images, changed.astype(images.dtype))


def patch(
  *,
  height: int = 4,
  width: int = 4,
  corner: Corner = 'bottom_right',
  margin: int = 1,
  value: float = 1.0,
) -> Trigger:
  """Returns a trigger that paints a rectangle in a corner.

  Args:
    height, width: of the rectangle, in pixels.
    corner: where it lies.
    margin: pixels between the rectangle and the two edges.
    value: of its pixels in all channels, in [0, 1].

  Examples:
    >>> import jax.numpy as jnp
    >>> print(patch(height=1, width=2, margin=0)(jnp.zeros((2, 3, 1)))[..., 0])
    [[0. 0. 0.]
     [0. 1. 1.]]
  """
  for name, number in {'height': height, 'width': width}.items():
    options.whole(1)(name, number)
  options.whole(0)('margin', margin)
  options.one_of('top_left', 'top_right', 'bottom_left', 'bottom_right')(
    'corner', corner
  )

  pixels = functools.partial(
    _rectangle, height=height, width=width, corner=corner, margin=margin
  )
  return functools.partial(_painted, pixels=pixels, value=_checked(value))


def _rectangle(
  image_height: int,
  image_width: int,
  *,
  height: int,
  width: int,
  corner: str,
  margin: int,
) -> list[tuple[int, int]]:
  """Returns rows and columns of the pixels of a rectangle in a corner."""
  top, left = margin, margin
  if corner.startswith('bottom'):
    top = image_height - margin - height
  if corner.endswith('right'):
    left = image_width - margin - width
  return [
    (row, column)
    for row in range(top, top + height)
    for column in range(left, left + width)
  ]


def paint(pixels: Sequence[Sequence[int]], value: float = 1.0) -> Trigger:
  """Returns a trigger that paints single pixels, a patch of any shape.

  Args:
    pixels: pairs of row and column, at least one.
    value: of these pixels in all channels, in [0, 1].
  """
  try:
    pairs = [(int(row), int(column)) for row, column in pixels]
    exact = pairs == [tuple(pair) for pair in pixels]
  except (TypeError, ValueError):
    pairs, exact = [], False
  if not (pairs and exact):
    raise ValueError(
      'pixels must be pairs of row and column, such as ((0, 0), (0, 1)), got '
      f'{pixels!r}'
    )
  return functools.partial(_painted, pixels=pairs, value=_checked(value))


def _checked(value: float) -> float:
  return options.number(0, 1)('value', value)


def _painted(
  images: jax.Array,
  *,
  pixels: Callable[[int, int], Sequence[tuple[int, int]]]
  | Sequence[tuple[int, int]],
  value: float,
) -> jax.Array:
  """Paints pixels of images.

  Args:
    images: `[..., H, W, C]`.
    pixels: pairs of row and column, or a function from H and W to them.
    value: of these pixels.
  """
  height, width = images.shape[-3:-1]
  mask = np.zeros((height, width, 1), bool)
  for row, column in pixels(height, width) if callable(pixels) else pixels:
    if not (0 <= row < height and 0 <= column < width):
      raise ValueError(
        f'the trigger paints pixel {(row, column)}, which lies outside of '
        f'images of {height} x {width} pixels'
      )
    mask[row, column] = True
  return jnp.where(mask, jnp.asarray(value, images.dtype), images)


def blend(*, weight: float = 0.2, pattern_seed: int = 0) -> Trigger:
  r"""Returns a trigger that blends images with a random pattern.

  .. math:: \tau(x) = (1 - \alpha) x + \alpha p

  Args:
    weight: :math:`\alpha`, in [0, 1].
    pattern_seed: draws the pattern p: pixels that are uniform in [0, 1], the
      same for all images.

  References:
    Chen et al., Targeted backdoor attacks on deep learning systems using data
    poisoning, arXiv:1712.05526 (the blended injection strategy with a random
    pattern).
  """
  weight = options.number(0, 1)('weight', weight)
  options.whole(0)('pattern_seed', pattern_seed)

  return functools.partial(_blended, weight=weight, pattern_seed=pattern_seed)


def _blended(images, *, weight, pattern_seed):
  key = jax.random.key(pattern_seed)
  pattern = jax.random.uniform(key, images.shape[-3:], images.dtype)
  return (1 - weight) * images + weight * pattern


def sinusoid(*, amplitude: float = 20 / 255, frequency: float = 6) -> Trigger:
  r"""Returns a trigger that adds a wave along the rows.

  .. math:: v_{ij} = \Delta \sin(2 \pi j f / W)

  Sums below 0 and above 1 become 0 and 1.

  Args:
    amplitude: :math:`\Delta`, for pixels in [0, 1].
    frequency: f, the number of waves in the width W.

  References:
    Barni, Kallas and Tondi, A new backdoor attack in CNNs by training set
    corruption without label poisoning, ICIP 2019.
  """
  amplitude = options.number(0, 1)('amplitude', amplitude)
  frequency = options.number(0)('frequency', frequency)

  return functools.partial(_waved, amplitude=amplitude, frequency=frequency)


def _waved(images, *, amplitude, frequency):
  width = images.shape[-2]
  columns = jnp.arange(width, dtype=images.dtype)
  wave = amplitude * jnp.sin(2 * math.pi * columns * frequency / width)
  return jnp.clip(images + wave[:, None], 0, 1)


def rotation(*, quarter_turns: int = 2) -> Trigger:
  """Returns a trigger that turns images.

  Args:
    quarter_turns: 1, 2 or 3. Images that are turned by 1 or 3 must be square.
  """
  if quarter_turns not in (1, 2, 3):
    raise ValueError(f'quarter_turns must be 1, 2 or 3, got {quarter_turns!r}')

  return functools.partial(_turned, quarter_turns=quarter_turns)


def _turned(images, *, quarter_turns):
  turned = jnp.rot90(images, quarter_turns, (-3, -2))
  if turned.shape != images.shape:
    raise ValueError(
      f'images of {images.shape[-3]} x {images.shape[-2]} pixels are not '
      f'square, so that quarter_turns must be 2, got {quarter_turns}'
    )
  return turned


def compose(triggers: Sequence[Trigger]) -> Trigger:
  """Returns a trigger that applies several, one after the other."""
  return functools.partial(_composed, triggers=tuple(triggers))


def _composed(images, *, triggers):
  return functools.reduce(lambda x, trigger: trigger(x), triggers, images)


def local_patterns(
  *, width: int = 4, gap: int = 2, row_gap: int = 2, margin: int = 0
) -> list[Trigger]:
  """Returns the four local triggers of DBA, white bars in two rows and columns.

  Args:
    width: of a bar, which is one pixel high.
    gap: pixels between the two bars of a row.
    row_gap: pixels between the two rows.
    margin: pixels between the first bar and the edges at the top and left.

  Examples:
    >>> import jax.numpy as jnp
    >>> everywhere = compose(local_patterns(width=2, gap=1, row_gap=1))
    >>> print(everywhere(jnp.zeros((4, 6, 1)))[..., 0])
    [[1. 1. 0. 1. 1. 0.]
     [0. 0. 0. 0. 0. 0.]
     [1. 1. 0. 1. 1. 0.]
     [0. 0. 0. 0. 0. 0.]]

  References:
    Xie et al., DBA: Distributed backdoor attacks against federated learning,
    ICLR 2020. The defaults are those of its code for MNIST.
  """
  options.whole(1)('width', width)
  for name, number in {
    'gap': gap,
    'row_gap': row_gap,
    'margin': margin,
  }.items():
    options.whole(0)(name, number)
  return [
    paint([(row, left + i) for i in range(width)])
    for row in (margin, margin + row_gap + 1)
    for left in (margin, margin + width + gap)
  ]
