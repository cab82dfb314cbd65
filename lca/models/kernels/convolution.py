"""Layers in the form that is fast inside a compiled loop and under vmap.

Local training runs a convolution's gradients inside `lax.while_loop`, often
under `vmap` with one kernel per client. Left to itself XLA is slow at both: on
CPUs the kernel gradient inside a loop is 100 times slower than outside
(https://github.com/jax-ml/jax/issues/12868), and on GPUs a vmapped convolution
becomes a grouped one. `conv` goes in through Flax's own door:

    nn.Conv(32, (3, 3), conv_general_dilated=conv)

computes what `nn.Conv(32, (3, 3))` does, and models stay plain `flax.linen`.
"""

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lca.models.kernels import depthwise, pooling, winograd
from lca.models.kernels.windows import windows

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
_GRADIENT_EXAMPLES = 4  # a kernel gradient of so many images stays in a cache


def conv(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: lax.ConvDimensionNumbers | None = None,
  feature_group_count: int = 1,
  precision: lax.PrecisionLike = None,
  pool: bool = False,
) -> jax.Array:
  """`lax.conv_general_dilated`, to be handed to `flax.linen.Conv`.

  Two-dimensional convolutions in Flax's layout, without dilation, padded by
  less than the kernel, take a fast form if they have one group, or are
  depthwise: one filter for each channel, not smaller than its strides. All
  others are passed on to `lax.conv_general_dilated`.

  Args:
    lhs: `[batch, height, width, in]` images.
    rhs: `[kernel height, kernel width, in, out]`.
    window_strides: as in `lax.conv_general_dilated`, like all that follow.
    padding: `'SAME'`, `'VALID'`, or pairs.
    lhs_dilation: None is 1.
    rhs_dilation: None is 1.
    dimension_numbers: NHWC, HWIO, NHWC is Flax's.
    feature_group_count: number of groups.
    precision: of the products.
    pool: max-pools the result, see `conv_max_pool`.

  Returns:
    `[batch, height, width, out]`, or half as high and as wide if pooled.
  """
  strides = tuple(int(stride) for stride in window_strides)
  pads = _plain_pads(
    lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
  )
  if pads is not None and feature_group_count == 1:
    if pool and strides == (1, 1) and _winograd_pays(lhs, rhs, pads):
      return _conv2d_max_pool(lhs, rhs, pads, precision)
    if strides != (1, 1):
      # One matrix product, of which every gradient is one too.
      seen = windows(lhs, rhs.shape, pads, strides)
      columns = jnp.concatenate([window for _, _, window in seen], axis=-1)
      flat = rhs.reshape(-1, rhs.shape[-1])
      y = jnp.dot(columns, flat, precision=precision)
    elif rhs.shape[:2] == (1, 1):
      y = jnp.dot(lhs, rhs[0, 0], precision=precision)
    else:
      y = _conv2d(lhs, rhs, pads, precision)
  elif (
    pads is not None
    and feature_group_count == lhs.shape[3] == rhs.shape[3]
    and all(map(operator.ge, rhs.shape[:2], strides))
  ):
    # Each channel has one filter, which is not smaller than its strides.
    y = depthwise.conv(lhs, rhs, strides, pads)
  else:
    y = lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation,
      rhs_dilation,
      dimension_numbers,
      feature_group_count,
      precision=precision,
    )
  return pooling.max_pool(y) if pool else y


# Handed to flax.linen.Conv it pools before the bias is added: a bias, and a
# ReLU after it, make no difference to which entry is the largest.
conv_max_pool = functools.partial(conv, pool=True)


def _plain_pads(
  lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
):
  """Returns the padding of a convolution that may be fast, or else None.

  It has two dimensions, no dilation and Flax's layout.
  """
  ones = (1,) * len(strides)
  layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  if (
    len(ones) != 2
    or tuple(lhs_dilation or ones) != ones
    or tuple(rhs_dilation or ones) != ones
    or layout != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
  ):
    return None
  sides, kernel = lhs.shape[1:3], rhs.shape[:2]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(sides, kernel, strides, padding)
  # Each window must see the image, in whole or in part.
  if not all(
    k <= size + low + high and 0 <= low < k and 0 <= high < k
    for size, k, (low, high) in zip(sides, kernel, padding, strict=True)
  ):
    return None
  return tuple((int(low), int(high)) for low, high in padding)


def _winograd_pays(x, kernel, padding):
  """On CPUs; with less to multiply, transforms cost more than they save."""
  *sides, channels, features = kernel.shape
  if sides != [3, 3] or min(channels, features) < 32 or not len(x):
    return False
  outputs = math.prod(winograd.output_sides(x, padding))
  heavy = outputs * channels * features >= 2**19
  return heavy and x.dtype == kernel.dtype == jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, padding, precision):
  if kernel.shape[2] == 1:
    return _shifted_products(x, kernel, padding, precision)
  on_cpu = winograd.conv if _winograd_pays(x, kernel, padding) else _padded
  # One product per kernel position is a batched matrix product under vmap,
  # where a native convolution would be a grouped one.
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, k: on_cpu(x, k, padding, precision),
    default=lambda x, k: _shifted_products(x, k, padding, precision),
  )


def _conv2d_fwd(x, kernel, padding, precision):
  return _conv2d(x, kernel, padding, precision), (x, kernel)


def _conv2d_bwd(padding, precision, residuals, g):
  if not _winograd_pays(*residuals, padding):
    return _gradients(*residuals, g, padding, precision)
  return lax.platform_dependent(
    *residuals,
    g,
    cpu=lambda x, k, g: winograd.conv_gradients(x, k, g, padding, precision),
    default=lambda x, k, g: _gradients(x, k, g, padding, precision),
  )


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def _gradients(x, kernel, g, padding, precision):
  sides = zip(kernel.shape[:2], padding, strict=True)
  opposite = tuple((size - 1 - lo, size - 1 - hi) for size, (lo, hi) in sides)
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _conv2d(g, turned, opposite, precision)
  return dx, _kernel_gradient(x, g, kernel, padding, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_max_pool(x, kernel, padding, precision):
  return _conv2d_max_pool_fwd(x, kernel, padding, precision)[0]


def _conv2d_max_pool_fwd(x, kernel, padding, precision):
  def in_two_passes(x, kernel):
    y = _conv2d(x, kernel, padding, precision)
    return pooling.largest(pooling.squares(y))

  pooled, winners = lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, k: winograd.conv_max_pool(x, k, padding, precision),
    default=in_two_passes,
  )
  return pooled, (x, kernel, winners)


def _conv2d_max_pool_bwd(padding, precision, residuals, g):
  def in_two_passes(x, kernel, winners, g):
    sides = winograd.output_sides(x, padding)
    g = pooling.unpooled(winners, g, sides)
    return _gradients(x, kernel, g, padding, precision)

  return lax.platform_dependent(
    *residuals,
    g,
    cpu=lambda *args: winograd.conv_max_pool_gradients(
      *args, padding, precision
    ),
    default=in_two_passes,
  )


_conv2d_max_pool.defvjp(_conv2d_max_pool_fwd, _conv2d_max_pool_bwd)


def _padded(x, kernel, padding, precision):
  """A convolution that is padded: on CPUs one without takes twice as long."""
  if any(pad for pads in padding for pad in pads):
    return _native(x, kernel, padding, precision)
  edges = [size // 2 for size in kernel.shape[:2]]
  out = _native(x, kernel, tuple((e, e) for e in edges), precision)
  height, width = (
    size - k + 1 for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
  )
  top, left = edges
  return out[:, top : top + height, left : left + width]


def _native(x, kernel, padding, precision):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT, precision=precision
  )


def _shifted_products(x, kernel, padding, precision):
  sums = jnp.promote_types(x.dtype, jnp.float32)

  def product(window, weights):  # [..., in] times [in, out]
    if len(weights) == 1:
      return window.astype(sums) * weights[0]
    return jnp.dot(
      window, weights, precision=precision, preferred_element_type=sums
    )

  seen = windows(x, kernel.shape, padding)
  total = sum(product(window, kernel[i, j]) for i, j, window in seen)
  return total.astype(x.dtype)


def _kernel_gradient(x, g, kernel, padding, precision):
  def by_position(x, g):
    g = g.reshape(-1, g.shape[-1])
    rows = [
      jnp.dot(window.reshape(-1, window.shape[-1]).T, g, precision=precision)
      for _, _, window in windows(x, kernel.shape, padding)
    ]
    return jnp.stack(rows).reshape(kernel.shape)

  def single_channel(x, g):
    seen = windows(x, kernel.shape, padding)
    columns = jnp.stack([w.reshape(-1) for _, _, w in seen])
    product = jnp.dot(columns, g.reshape(-1, g.shape[-1]), precision=precision)
    return product.reshape(kernel.shape)

  def by_convolution(x, g):
    # As an ordinary convolution, in which images are the channels: this is
    # what escapes the slow path of XLA's CPU backend.
    def add(i, total):
      start = i * _GRADIENT_EXAMPLES
      images, gradients = (
        lax.dynamic_slice_in_dim(a, start, _GRADIENT_EXAMPLES) for a in (x, g)
      )
      part = _native(
        images.transpose(3, 1, 2, 0),
        gradients.transpose(1, 2, 0, 3),
        padding,
        precision,
      )
      return total + part.transpose(1, 2, 0, 3)

    missing = -len(x) % _GRADIENT_EXAMPLES
    x, g = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (x, g))
    sums = jnp.promote_types(kernel.dtype, jnp.float32)
    zero = jnp.zeros(kernel.shape, sums)
    total = lax.fori_loop(0, len(x) // _GRADIENT_EXAMPLES, add, zero)
    return total.astype(kernel.dtype)

  if kernel.shape[2] == 1:
    return single_channel(x, g)
  return lax.platform_dependent(x, g, cpu=by_convolution, default=by_position)


def dropout(
  x: jax.Array, rate: float, keys: jax.Array | None, place: int
) -> jax.Array:
  """Dropout with a key of its own for every example.

  A mask then does not depend on which examples it is drawn beside, and so not
  on the size of a micro-batch or a chunk.

  Args:
    x: `[batch, ...]`.
    rate: the share of entries set to 0; the others are scaled up by 1 / (1 -
      rate).
    keys: `[batch]`; None returns `x`.
    place: of this dropout in the model, folded into the keys.

  Returns:
    `[batch, ...]`.
  """
  if keys is None or not rate:
    return x

  def kept(key):
    own = jax.random.fold_in(key, place)
    return jax.random.bernoulli(own, 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(kept)(keys), x / (1 - rate), 0)
