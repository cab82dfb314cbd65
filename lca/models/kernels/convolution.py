"""Convolutions and dropout that suit compiled loops and `vmap` over clients.

Local training computes the gradients of convolutions inside of a compiled loop
(`lax.while_loop`), often under `vmap` with one kernel per client. XLA's own
convolution, `lax.conv_general_dilated`, is slow at both:

- On CPUs the gradient with respect to the kernel takes 100 times as long inside
  of a loop as outside: 2,945 ms against 29 ms (jaxlib 0.10.2, 2 cores;
  https://github.com/jax-ml/jax/issues/12868). The workaround in
  `_kernel_gradient` takes 33 ms. The paper's CNN trains at 20 samples a second
  with XLA's own convolutions and pooling. It trains at about 1,400 with this
  workaround, shifted products for its first convolution, pooling by reshape and
  two virtual devices.
- On GPUs a convolution under `vmap` with one kernel per client becomes a
  grouped convolution, which is slow.

`conv` avoids both. Models stay plain `flax.linen` modules, because Flax's
convolution layer takes the convolution as an argument:

    nn.Conv(32, (3, 3), conv_general_dilated=conv)

computes the same as `nn.Conv(32, (3, 3))`.
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
# The CPU form of the kernel gradient takes this many images at a time, so that
# they stay in the processor's cache.
_GRADIENT_EXAMPLES = 4


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
  """Replaces `lax.conv_general_dilated` as an argument of `flax.linen.Conv`.

  The result is the same. A convolution takes a fast form if it is
  two-dimensional, in Flax's layout, without dilation, padded by less than the
  kernel's size, and either of these:

  - it has one group, as ordinary convolutions have;
  - it is depthwise (one filter for each channel), with a kernel that is at
    least as large as the strides.

  All other convolutions are passed on to `lax.conv_general_dilated`.

  Args:
    lhs: `[batch, height, width, in]` images.
    rhs: `[kernel height, kernel width, in, out]` kernel. Its third axis is
      `in / feature_group_count` if there are several groups.
    window_strides: the strides down and across.
    padding: `'SAME'`, `'VALID'`, or pairs.
    lhs_dilation: dilation of the images; None is 1.
    rhs_dilation: dilation of the kernel; None is 1.
    dimension_numbers: the layout; Flax's is `('NHWC', 'HWIO', 'NHWC')`.
    feature_group_count: the number of groups.
    precision: precision of the products, as in `lax.conv_general_dilated`.
    pool: True max-pools the result over 2 x 2 squares, as `conv_max_pool` does.

  Returns:
    `[batch, height', width', out]`, or
    `[batch, height' // 2, width' // 2, out]` if pooled.
  """
  strides = tuple(int(stride) for stride in window_strides)
  pads = _fast_padding(
    lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
  )
  if pads is not None and feature_group_count == 1:
    if pool and strides == (1, 1) and _winograd_pays(lhs, rhs, pads):
      return _conv2d_max_pool(lhs, rhs, pads, precision)
    if strides != (1, 1):
      # With strides, the pixels under the kernel are gathered, and one matrix
      # product follows ("im2col"). Its gradients are matrix products, too.
      shifted = [w for _, _, w in windows(lhs, rhs.shape, pads, strides)]
      patches = jnp.concatenate(shifted, axis=-1)  # [..., positions * in]
      matrix = rhs.reshape(-1, rhs.shape[-1])  # [positions * in, out]
      y = jnp.dot(patches, matrix, precision=precision)
    elif rhs.shape[:2] == (1, 1):
      y = jnp.dot(lhs, rhs[0, 0], precision=precision)
    else:
      y = _conv2d(lhs, rhs, pads, precision)
  elif (
    pads is not None
    and feature_group_count == lhs.shape[3] == rhs.shape[3]
    and all(map(operator.ge, rhs.shape[:2], strides))
  ):
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


conv_max_pool = functools.partial(conv, pool=True)
"""`conv` followed by 2 x 2 max-pooling, as an argument of `flax.linen.Conv`.

`nn.Conv` then pools before it adds the bias. The result is the same as with
pooling after the bias and after a ReLU: both are monotonic and the same for all
pixels of a channel, so they do not change which entry is the largest.
"""


def _fast_padding(
  lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
):
  """Returns the padding as pairs, or None if there is no fast form.

  There is one if the convolution has two dimensions, no dilation, Flax's
  layout, and less padding than the kernel's size. See `conv`.
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
  # The kernel fits into the padded images, and everywhere covers at least one
  # pixel that is not padding.
  if not all(
    k <= size + low + high and 0 <= low < k and 0 <= high < k
    for size, k, (low, high) in zip(sides, kernel, padding, strict=True)
  ):
    return None
  return tuple((int(low), int(high)) for low, high in padding)


def _winograd_pays(x, kernel, padding):
  """Returns True if Winograd's form is faster on CPUs.

  It is for 3 x 3 kernels in float32. Its transforms of images and kernels pay
  only if there is much to multiply: at least 32 input channels, 32 output
  channels, and 2^19 for height' * width' * in * out.
  """
  *sides, channels, features = kernel.shape
  if sides != [3, 3] or min(channels, features) < 32 or not len(x):
    return False
  outputs = math.prod(winograd.output_sides(x, padding))
  heavy = outputs * channels * features >= 2**19
  return heavy and x.dtype == kernel.dtype == jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, padding, precision):
  """Returns a convolution of stride 1 in the form for the platform at hand."""
  if kernel.shape[2] == 1:
    return _shifted_products(x, kernel, padding, precision)
  pays = _winograd_pays(x, kernel, padding)
  cpu_form = winograd.conv if pays else _conv_with_padding
  # On accelerators, one matrix product for each kernel position becomes a
  # batched matrix product under `vmap` with one kernel per client. XLA's own
  # convolution would become a grouped convolution, which is slow.
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, k: cpu_form(x, k, padding, precision),
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
  """Returns the gradients with respect to the images and the kernel.

  The gradient with respect to the images is the convolution of `g`, the
  gradient with respect to the result, with the kernel turned by 180 degrees.
  """
  sides = zip(kernel.shape[:2], padding, strict=True)
  g_padding = tuple((size - 1 - lo, size - 1 - hi) for size, (lo, hi) in sides)
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _conv2d(g, turned, g_padding, precision)
  return dx, _kernel_gradient(x, g, kernel, padding, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_max_pool(x, kernel, padding, precision):
  """Returns `_conv2d`, max-pooled. CPUs compute both in one pass.

  The backward pass keeps one byte for each pooled entry (see
  `pooling.largest`), and not the result of the convolution.
  """
  return _conv2d_max_pool_fwd(x, kernel, padding, precision)[0]


def _conv2d_max_pool_fwd(x, kernel, padding, precision):
  def in_two_passes(x, kernel):
    y = _conv2d(x, kernel, padding, precision)
    return pooling.largest(pooling.split_squares(y))

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
    g = pooling.max_pool_gradient(winners, g, sides)
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


def _conv_with_padding(x, kernel, padding, precision):
  """Returns XLA's convolution, computed with padding even if `padding` is 0.

  A workaround for XLA on CPUs (jaxlib 0.10): a convolution without padding
  takes twice as long as one with padding. If `padding` is 0, this function pads
  the images and cuts the surplus off the result.
  """
  if any(pad for pads in padding for pad in pads):
    return _xla_conv(x, kernel, padding, precision)
  edges = [size // 2 for size in kernel.shape[:2]]
  out = _xla_conv(x, kernel, tuple((e, e) for e in edges), precision)
  height, width = (
    size - k + 1 for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
  )
  top, left = edges
  return out[:, top : top + height, left : left + width]


def _xla_conv(x, kernel, padding, precision):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT, precision=precision
  )


def _shifted_products(x, kernel, padding, precision):
  """Returns a convolution as a sum of one product per kernel position.

  The images, shifted to a position, are multiplied by the kernel's `[in, out]`
  matrix there. The sum is in float32 or wider.
  """
  sum_dtype = jnp.promote_types(x.dtype, jnp.float32)

  def product(window, weights):  # [..., in] times [in, out]
    if len(weights) == 1:
      return window.astype(sum_dtype) * weights[0]
    return jnp.dot(
      window, weights, precision=precision, preferred_element_type=sum_dtype
    )

  shifted = windows(x, kernel.shape, padding)
  total = sum(product(window, kernel[i, j]) for i, j, window in shifted)
  return total.astype(x.dtype)


def _kernel_gradient(x, g, kernel, padding, precision):
  """Returns the gradient with respect to the kernel, in the kernel's dtype.

  The `[in, out]` entry at position (i, j) is the product of the images shifted
  by (i, j) with `g`, summed over all pixels of all images. Three forms compute
  it: one for images of a single channel, one for CPUs, one for accelerators.
  """

  def by_position(x, g):
    g = g.reshape(-1, g.shape[-1])
    rows = [
      jnp.dot(window.reshape(-1, window.shape[-1]).T, g, precision=precision)
      for _, _, window in windows(x, kernel.shape, padding)
    ]
    return jnp.stack(rows).reshape(kernel.shape)

  def single_channel(x, g):
    shifted = windows(x, kernel.shape, padding)
    rows = jnp.stack([w.reshape(-1) for _, _, w in shifted])
    product = jnp.dot(rows, g.reshape(-1, g.shape[-1]), precision=precision)
    return product.reshape(kernel.shape)

  def by_convolution(x, g):
    # A workaround for XLA on CPUs (jaxlib 0.10.2): the gradient that autodiff
    # makes of a convolution takes 2,945 ms inside of a loop. The same sum is
    # written here as an ordinary convolution, which takes 33 ms. In it, the
    # channels of the images are the batch, the images are the channels, and
    # `g` is the kernel.
    def add(i, total):
      start = i * _GRADIENT_EXAMPLES
      images, gradients = (
        lax.dynamic_slice_in_dim(a, start, _GRADIENT_EXAMPLES) for a in (x, g)
      )
      part = _xla_conv(
        images.transpose(3, 1, 2, 0),  # [in, height, width, examples]
        gradients.transpose(1, 2, 0, 3),  # [height', width', examples, out]
        padding,
        precision,
      )
      # From [in, i, j, out] to the kernel's [i, j, in, out].
      return total + part.transpose(1, 2, 0, 3)

    missing = -len(x) % _GRADIENT_EXAMPLES
    x, g = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (x, g))
    zero = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    total = lax.fori_loop(0, len(x) // _GRADIENT_EXAMPLES, add, zero)
    return total.astype(kernel.dtype)

  if kernel.shape[2] == 1:
    return single_channel(x, g)
  return lax.platform_dependent(x, g, cpu=by_convolution, default=by_position)


def dropout(
  x: jax.Array, rate: float, keys: jax.Array | None, place: int
) -> jax.Array:
  """Applies dropout with a separate PRNG key for every example.

  The mask of an example depends on its own key alone. The other examples of the
  batch, and the size of a micro-batch or a chunk, do not change it.

  Args:
    x: `[batch, ...]`.
    rate: the probability with which an entry is set to 0. The other entries are
      multiplied by 1 / (1 - rate).
    keys: `[batch]` PRNG keys; None, as in testing, returns `x`.
    place: an integer that tells this dropout from the model's other ones. It is
      folded into the keys, so that their masks are independent.

  Returns:
    `[batch, ...]`.
  """
  if keys is None or not rate:
    return x

  def draw_mask(key):
    key = jax.random.fold_in(key, place)
    return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(draw_mask)(keys), x / (1 - rate), 0)
