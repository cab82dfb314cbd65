"""Decoding of JPEG images into arrays of pixels."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def decode(content: bytes, *, size: int | None = None) -> np.ndarray:
  """Decodes a colour JPEG, and resizes it to a square if `size` is given.

  The image is scaled by bicubic interpolation until its shorter side has `size`
  pixels. Then the square in its centre is cut out. torchvision's transforms
  `Resize(size)` and `CenterCrop(size)` do the same.

  Args:
    content: the whole file.
    size: the side of the square in pixels; None keeps the image's own size.

  Returns:
    `[H, W, 3]` uint8 pixels.

  Raises:
    ValueError: the content is not a complete JPEG, or not an RGB image.
  """
  with _opened(content) as image:
    if size is None:
      return np.asarray(image)
    # Both lines round as torchvision does: `width` and `height` down, `left`
    # and `top` to the nearest integer.
    width, height = (size * side // min(image.size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def shape(content: bytes) -> tuple[int, int, int]:
  """Reads the shape of a colour JPEG from its header, without decoding pixels.

  Args:
    content: the whole file.

  Returns:
    H, W and 3.

  Raises:
    ValueError: the content is not a JPEG, or not an RGB image.
  """
  with _opened(content) as image:
    return image.height, image.width, 3


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
  """Opens an RGB JPEG; while it is open, Pillow's errors become ValueErrors."""
  try:
    with Image.open(io.BytesIO(content), formats=['JPEG']) as image:
      if image.mode != 'RGB':
        raise ValueError(f'the JPEG has the mode {image.mode}, not RGB')
      yield image
  except OSError as error:
    raise ValueError(f'not a complete JPEG ({error})') from error
