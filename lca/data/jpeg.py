"""JPEG images as arrays of pixels."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def decode(content: bytes, *, size: int | None = None) -> np.ndarray:
  """Decodes a colour JPEG, and resizes it if asked to.

  Resizing makes the shorter side `size` long, by bicubic interpolation, and
  keeps the middle square: torchvision's Resize and CenterCrop of one size.

  Args:
    content: The whole file.
    size: Side of the square; None keeps the image as it is.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: Not a whole JPEG, or not one in colour.
  """
  with _opened(content) as image:
    if size is None:
      return np.asarray(image)
    # Rounded as torchvision rounds.
    width, height = (size * side // min(image.size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def shape(content: bytes) -> tuple[int, int, int]:
  """Reads a colour JPEG's shape from its header, without decoding the rest.

  Args:
    content: The whole file.

  Returns:
    H, W and 3.

  Raises:
    ValueError: Not a JPEG, or not one in colour.
  """
  with _opened(content) as image:
    return image.height, image.width, 3


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
  try:
    with Image.open(io.BytesIO(content), formats=['JPEG']) as image:
      if image.mode != 'RGB':
        raise ValueError(f'a JPEG of mode {image.mode}, not RGB')
      yield image
  except OSError as error:
    raise ValueError(f'not a whole JPEG ({error})') from error
