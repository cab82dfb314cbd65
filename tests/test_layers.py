"""The fast convolutions and pooling against XLA's own."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lca.federated.randomness import Purpose, key_for
from lca.models.kernels import convolution, pooling, winograd

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# Sums of up to 5 x 5 x 6 or 9 x 8 x 8 products in float32, in another order.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


@pytest.fixture(params=['cpu', 'accelerator'])
def form(request, monkeypatch):
  """Runs a test in the CPU's form and in the one for accelerators."""
  if request.param == 'accelerator':
    monkeypatch.setattr(
      convolution.lax,
      'platform_dependent',
      lambda *args, cpu, default: default(*args),
    )


def arrays(batch, channels, features, size=8, kernel=3):
  rng = np.random.default_rng(batch + channels + kernel)
  x = rng.normal(size=(batch, size, size, channels))
  k = rng.normal(size=(kernel, kernel, channels, features))
  return jnp.asarray(x, 'float32'), jnp.asarray(k, 'float32')


def normals(*shape):
  return jnp.float32(np.random.default_rng(1).normal(size=shape))


def value_and_gradients(conv, x, kernel, padding, stride=(1, 1), groups=1):
  def scalar(x, kernel):
    y = conv(
      x,
      kernel,
      stride,
      padding,
      dimension_numbers=LAYOUT,
      feature_group_count=groups,
    )
    return jnp.sum(jnp.sin(y))  # every output has a cotangent of its own

  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(x, kernel)


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 1))])
@pytest.mark.parametrize(
  ('batch', 'channels', 'kernel'),
  [
    (1, 1, 3),
    (5, 3, 3),
    (8, 6, 5),
    (4, 2, 1),
    *(
      pytest.param(*c, 3, marks=pytest.mark.thorough) for c in [(5, 1), (1, 3)]
    ),
  ],
)
def test_conv_and_its_gradients_equal_xlas(batch, channels, kernel, padding):
  x, k = arrays(batch, channels, 7, kernel=kernel)
  ours = value_and_gradients(convolution.conv, x, k, padding)
  xlas = value_and_gradients(lax.conv_general_dilated, x, k, padding)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, xlas
  )


@pytest.mark.usefixtures('form')
def test_conv_under_vmap_and_in_a_loop_equals_one_by_one():
  x, _ = arrays(15, 3, 4)
  x = x.reshape(5, 3, 8, 8, 3)
  kernels = normals(5, 3, 3, 3, 4)

  def step(x, kernel):
    def body(_, kernel):
      _, (_, dk) = value_and_gradients(convolution.conv, x, kernel, 'SAME')
      return kernel - 0.01 * dk

    return lax.fori_loop(0, 2, body, kernel)

  together = jax.jit(jax.vmap(step))(x, kernels)
  alone = [jax.jit(step)(x[i], kernels[i]) for i in range(5)]
  np.testing.assert_allclose(together, jnp.stack(alone), **CLOSE)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 1))])
@pytest.mark.parametrize(
  ('stride', 'kernel'), [((2, 2), 3), ((2, 1), 5), ((1, 1), 1), ((2, 2), 1)]
)
def test_strided_and_pointwise_equal_xlas(stride, kernel, padding):
  x, k = arrays(3, 4, 7, size=9, kernel=kernel)
  ours = value_and_gradients(convolution.conv, x, k, padding, stride)
  xlas = value_and_gradients(lax.conv_general_dilated, x, k, padding, stride)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, xlas
  )


def padded_by(style, kernel):
  return 'SAME' if style == 'same' else ((kernel // 2, kernel // 2),) * 2


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize(
  ('kernel', 'stride', 'size', 'style'),
  [
    (3, (1, 1), (8, 7), 'symmetric'),
    (3, (2, 2), (8, 7), 'symmetric'),
    (3, (2, 2), (8, 7), 'same'),
    (5, (1, 1), (3, 6), 'same'),
    (5, (2, 2), (9, 6), 'symmetric'),
    (5, (2, 2), (1, 6), 'same'),
    (3, (3, 1), (7, 2), 'symmetric'),
  ],
)
def test_depthwise_and_its_gradients_equal_xlas(kernel, stride, size, style):
  with jax.enable_x64(True):
    rng = np.random.default_rng(kernel)
    x = rng.normal(size=(2, *size, 5))
    k = rng.normal(size=(kernel, kernel, 1, 5))
    padding = padded_by(style, kernel)
    ours = value_and_gradients(
      convolution.conv, x, k, padding, stride, groups=5
    )
    xlas = value_and_gradients(
      lax.conv_general_dilated, x, k, padding, stride, groups=5
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
      ours,
      xlas,
    )


@pytest.mark.parametrize('stride', [1, 2])
def test_depthwise_takes_its_own_form(stride, monkeypatch):
  def native(*args, **options):
    raise AssertionError('a native convolution')

  x = jnp.ones((2, 6, 6, 4))
  module = nn.Conv(
    4,
    (3, 3),
    stride,
    feature_group_count=4,
    conv_general_dilated=convolution.conv,
  )
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  monkeypatch.setattr(convolution.lax, 'conv_general_dilated', native)
  jax.make_jaxpr(jax.grad(lambda v: jnp.sum(module.apply(v, x))))(variables)
  two_a_channel = nn.Conv(
    8, (3, 3), feature_group_count=4, conv_general_dilated=convolution.conv
  )
  with pytest.raises(AssertionError, match='native'):
    jax.eval_shape(two_a_channel.init, jax.random.key(0), x)


@pytest.mark.parametrize('stride', [(1, 1), (2, 2)])
def test_depthwise_under_vmap_and_in_a_loop_equals_one_by_one(stride):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(3, 2, 7, 7, 4)).astype(np.float32)
  kernels = rng.normal(size=(3, 3, 3, 1, 4)).astype(np.float32)

  def step(conv, x, kernel):
    def body(_, kernel):
      _, (_, dk) = value_and_gradients(conv, x, kernel, 'SAME', stride, 4)
      return kernel - 0.01 * dk

    return lax.fori_loop(0, 2, body, kernel)

  ours = functools.partial(step, convolution.conv)
  xlas = functools.partial(step, lax.conv_general_dilated)
  together = jax.jit(jax.vmap(ours))(x, kernels)
  alone = [jax.jit(xlas)(x[i], kernels[i]) for i in range(3)]
  np.testing.assert_allclose(together, jnp.stack(alone), **CLOSE)


@pytest.mark.parametrize('stride', [(1, 1), (2, 2)])
def test_depthwise_keeps_bfloat16_and_sums_in_float32(stride):
  rng = np.random.default_rng(4)
  x = rng.normal(size=(4, 16, 16, 3)).astype(jnp.bfloat16)
  k = rng.normal(size=(3, 3, 1, 3)).astype(jnp.bfloat16)
  halves = value_and_gradients(convolution.conv, x, k, 'SAME', stride, 3)
  _, (dx, dk) = halves
  assert (dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16)
  wide = value_and_gradients(
    convolution.conv,
    x.astype('float32'),
    k.astype('float32'),
    'SAME',
    stride,
    3,
  )
  # Outputs are rounded to 8 bits before the sine, and so are their gradients:
  # about 1e-2 on each of up to 1024 terms of a kernel's gradient, in root.
  for half, full in zip(halves[1], wide[1], strict=True):
    np.testing.assert_allclose(
      half.astype('float32'), full, rtol=0.05, atol=1.0
    )


@pytest.mark.parametrize(
  'options',
  [
    {'strides': (2, 2)},
    {'kernel_dilation': (2, 2)},
    {'feature_group_count': 4},
    {'strides': (2, 2), 'padding': 'VALID'},
    {},
  ],
)
def test_flax_takes_conv_through_its_door(options):
  x, _ = arrays(3, 4, 8)
  plain = nn.Conv(8, (3, 3), **options)
  ours = nn.Conv(8, (3, 3), conv_general_dilated=convolution.conv, **options)
  variables = plain.init(key_for(0, Purpose.INIT), x)
  np.testing.assert_allclose(
    ours.apply(variables, x), plain.apply(variables, x), **CLOSE
  )


def flax_pool(x):
  return nn.max_pool(x, (2, 2), (2, 2))


@pytest.mark.parametrize('size', [8, 7])
def test_max_pool_equals_flaxs(size):
  x, _ = arrays(2, 3, 1, size=size)

  def scalar(pool, x):
    return jnp.sum(jnp.sin(pool(x)))

  np.testing.assert_array_equal(pooling.max_pool(x), flax_pool(x))
  np.testing.assert_allclose(
    jax.grad(lambda x: scalar(pooling.max_pool, x))(x),
    jax.grad(lambda x: scalar(flax_pool, x))(x),
    rtol=1e-6,
  )


def test_entries_that_tie_share_the_gradient():
  x = jnp.array([[3.0, 3.0, 1.0, 2.0], [0.0, 3.0, 1.0, 0.0]])[None, ..., None]
  g = jax.grad(lambda x: jnp.sum(6 * pooling.max_pool(x)))(x)
  np.testing.assert_array_equal(g[0, ..., 0], [[2, 2, 0, 6], [0, 2, 0, 0]])


@pytest.mark.parametrize(
  ('batch', 'sides', 'padding'),
  [
    (5, (8, 6), ((1, 1), (1, 1))),
    (3, (7, 9), ((0, 0), (0, 0))),
    (2, (5, 4), ((2, 0), (1, 2))),
    (40, (6, 6), ((1, 1), (0, 0))),  # two blocks, the second not full
    (1, (3, 3), ((0, 0), (0, 0))),
  ],
)
def test_winograds_convolution_is_one(batch, sides, padding):
  with jax.enable_x64(True):
    rng = np.random.default_rng(batch)
    x = rng.normal(size=(batch, *sides, 3))
    kernel = rng.normal(size=(3, 3, 3, 4))

    def xlas(x, kernel):
      return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=LAYOUT
      )

    def ours(function, *arrays):
      return jax.jit(functools.partial(function, padding=padding))(*arrays)

    y, pull = jax.vjp(xlas, x, kernel)
    got = ours(winograd.conv, x, kernel)
    np.testing.assert_allclose(got, y, rtol=1e-12, atol=1e-12)
    g = rng.normal(size=y.shape)
    got = ours(winograd.conv_gradients, x, kernel, g)
    for a, b in zip(got, pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)

    if min(y.shape[1:3]) < 2:
      return
    pooled, pull = jax.vjp(lambda *xk: flax_pool(xlas(*xk)), x, kernel)
    largest, winners = ours(winograd.conv_max_pool, x, kernel)
    np.testing.assert_allclose(largest, pooled, rtol=1e-12, atol=1e-12)
    g = rng.normal(size=pooled.shape)
    got = ours(winograd.conv_max_pool_gradients, x, kernel, winners, g)
    for a, b in zip(got, pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_winograds_error_in_float32_is_near_that_of_a_sum():
  def xlas(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'VALID', dimension_numbers=LAYOUT
    )

  x, kernel = arrays(8, 32, 64, size=10)
  with jax.enable_x64(True):
    exact = np.asarray(xlas(x.astype('float64'), kernel.astype('float64')))

  def error(y):
    return np.std(np.asarray(y, np.float64) - exact)

  fast = winograd.conv(x, kernel, ((0, 0), (0, 0)))
  assert error(fast) < 3 * error(xlas(x, kernel))
  assert error(fast) < 1e-6 * np.std(exact)


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('channels', [1, 32])
@pytest.mark.parametrize('size', [17, 16])
def test_conv_max_pool_goes_through_flaxs_door(channels, size):
  x, _ = arrays(3, channels, 1, size=size)
  plain = nn.Conv(64, (3, 3))
  ours = nn.Conv(64, (3, 3), conv_general_dilated=convolution.conv_max_pool)
  variables = plain.init(key_for(0, Purpose.INIT), x)
  variables['params']['bias'] += 0.5

  def last(variables, x):
    return flax_pool(nn.relu(plain.apply(variables, x)))

  def first(variables, x):
    return nn.relu(ours.apply(variables, x))

  def of(function):
    def scalar(*args):
      y = function(*args)
      return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
    of(first)(variables, x),
    of(last)(variables, x),
  )


@pytest.mark.usefixtures('form')
def test_conv_max_pool_under_vmap_equals_one_by_one():
  x, _ = arrays(4, 32, 1, size=16)
  x = x.reshape(2, 2, *x.shape[1:])
  kernels = normals(2, 3, 3, 32, 64)

  def gradients(x, kernel):
    return value_and_gradients(convolution.conv_max_pool, x, kernel, 'SAME')

  together = jax.vmap(gradients)(x, kernels)
  alone = [gradients(*pair) for pair in zip(x, kernels, strict=True)]
  jax.tree.map(
    lambda a, *b: np.testing.assert_allclose(a, jnp.stack(b), **CLOSE),
    together,
    *alone,
  )


def test_conv_max_pool_exports_for_every_platform():
  def gradients(x, kernel):
    return value_and_gradients(convolution.conv_max_pool, x, kernel, 'SAME')

  shapes = [(2, 16, 16, 32), (3, 3, 32, 64)]
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(jax.jit(gradients), platforms=platforms)(
    *arguments
  )
  assert exported.platforms == platforms


def test_no_images_are_convolved_to_none():
  y = convolution.conv_max_pool(
    jnp.ones((0, 16, 16, 32)),
    jnp.ones((3, 3, 32, 64)),
    (1, 1),
    'SAME',
    dimension_numbers=LAYOUT,
  )
  assert y.shape == (0, 8, 8, 64)


@pytest.mark.parametrize(
  ('size', 'channels', 'features', 'dtype', 'pays'),
  [
    (16, 32, 64, 'float32', True),
    (8, 32, 64, 'float32', False),
    (16, 32, 32, 'float32', False),
    (16, 16, 256, 'float32', False),
    (16, 32, 64, 'bfloat16', False),
  ],
)
def test_winograds_form_is_for_heavy_convolutions(
  size, channels, features, dtype, pays, monkeypatch
):
  taken = []

  def conv(*args):
    taken.append(args)
    return convolution._padded(*args)

  monkeypatch.setattr(winograd, 'conv', conv)
  x = jnp.ones((1, size, size, channels), dtype)
  kernel = jnp.ones((3, 3, channels, features), dtype)
  jax.eval_shape(
    functools.partial(
      convolution.conv,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=LAYOUT,
    ),
    x,
    kernel,
  )
  assert bool(taken) == pays
