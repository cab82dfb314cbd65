"""A module with its inputs and its loss: what is trained and what is tested."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from lca.models.pretrained import load_pretrained
from lca.typing import PyTree

_COLLECTIONS = ('params', 'batch_stats')
_BATCH = 2**32 - 1  # folded in for what is random for a batch as a whole


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A module that classifies its inputs, under the cross-entropy loss.

  The module is any `flax.linen.Module` whose `__call__` maps inputs
  `[batch, ...]` to logits `[batch, classes]`. It gets more arguments than its
  inputs if it names them:

  - `keys`, `[batch]`: a PRNG key for each example in training, None in testing.
    Randomness that is drawn from them does not depend on which examples share a
    batch (see `lca.models.kernels.convolution.dropout`).
  - `mask`, `[batch]`: False where a row only pads the batch, as of a client
    with a short last batch; None in testing.
  - `train` or `training`: True in training, False in testing.
  - `deterministic` or `use_running_average`: the opposite.

  A module that does not name `keys` has an rng `'dropout'` in training, one for
  the whole batch, so that `flax.linen.Dropout` works. A `flax.linen.BatchNorm`
  of a module that does not name `mask` is given the mask, so that rows of
  padding never count in its statistics.

  Inputs are prepared on the device. Images, `[height, width, channels]` of
  uint8 or floats, may be resized and cropped; no other inputs can be. With
  `mean` and `std` inputs become floats, `(input - mean) / std`. Without them,
  floats pass as they are, and integers stay integers, as tokens must.

  Attributes:
    module: as above.
    mean: a number, or one for each entry of the last axis: of images one per
      channel, in pixel units. None does not normalise.
    std: likewise.
    resize: images are scaled, bicubically, until their shorter side is that
      long; 0 leaves them as they are.
    crop: the side of the square that is then cut out of the middle; 0 keeps
      all.
    pretrained: weights to start from (see `load_pretrained`); '' draws them.
    dtype: that a training step computes in, forward and backward, such as
      `'bfloat16'`; None is the parameters' own. The parameters, their
      gradients, batch statistics and losses keep theirs, and so does testing.
      Integers stay integers.

  Raises:
    TypeError: the module is none.
    ValueError: a negative size, a crop larger than what it is cut out of, or a
      mean without std.
  """

  module: nn.Module
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  resize: int = 0
  crop: int = 0
  pretrained: str | os.PathLike = ''
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if not isinstance(self.module, nn.Module):
      kind = 'class' if isinstance(self.module, type) else 'object'
      raise TypeError(
        'the model must be a flax.linen.Module, such as MLP(), got the '
        f'{kind} {self.module!r}'
      )
    if (self.mean is None) != (self.std is None):
      raise ValueError(
        'mean and std go together: give both or neither, got '
        f'mean={self.mean}, std={self.std}'
      )
    for field in ('resize', 'crop'):
      value = getattr(self, field)
      if value < 0:
        raise ValueError(f'model.{field} must be at least 0, got {value}')
    if self.resize and self.crop and self.crop > self.resize:
      raise ValueError(
        f'model.crop={self.crop} is larger than model.resize={self.resize}'
      )

  def init(self, key: jax.Array, input_spec: jax.ShapeDtypeStruct) -> PyTree:
    """Returns the variables to start from.

    Args:
      key: of what is drawn: all, or the output layer of pretrained weights of
        other classes.
      input_spec: shape and dtype of one input, without a batch, such as
        `Split.input_spec`.

    Raises:
      ValueError, ImportError, OSError: see `load_pretrained`; inputs that the
        module cannot take, such as images that are too small for it; logits
        that are not `[batch, classes]`; variables other than parameters and
        batch statistics.
    """
    try:
      hash(self)
    except TypeError:  # a module that holds arrays: it is compiled every time
      variables = jax.jit(functools.partial(self._draw, input_spec))(key)
    else:
      variables = _drawn(self, input_spec, key)
    if not self.pretrained:
      return variables
    return load_pretrained(variables, self.pretrained)

  def _draw(self, input_spec, key):
    one = jnp.zeros((1, *input_spec.shape), input_spec.dtype)
    x, arguments = self._inputs(one), self._named(training=False)
    name = type(self.module).__name__
    try:
      logits, variables = self.module.init_with_output(key, x, **arguments)
    except Exception as error:  # of anybody's module
      raise ValueError(
        f'{name} cannot take an input of '
        f'{"x".join(map(str, input_spec.shape))} {input_spec.dtype}: {error}'
      ) from error
    if getattr(logits, 'ndim', None) != 2:
      raise ValueError(
        f'{name} must return logits [batch, classes], but of a batch of 1 it '
        f'returns {jax.tree.map(jnp.shape, logits)}'
      )
    if other := sorted(
      variables.keys() - set(_COLLECTIONS) - {'intermediates'}
    ):
      raise ValueError(
        f'{name} has the collections {other} beside params and batch_stats, '
        'and only these two are trained and aggregated'
      )
    return {k: v for k, v in variables.items() if k in _COLLECTIONS}

  def check_classes(
    self, variables: PyTree, input_spec: jax.ShapeDtypeStruct, num_classes: int
  ) -> None:
    """Checks that there is a logit for each class.

    Args:
      variables: of the module.
      input_spec: of one input.
      num_classes: of the data.

    Raises:
      ValueError: there are fewer logits than classes.
    """
    one = jax.ShapeDtypeStruct((1, *input_spec.shape), input_spec.dtype)
    width = jax.eval_shape(self.logits, variables, one).shape[-1]
    if width < num_classes:
      raise ValueError(
        f'{type(self.module).__name__} returns {width} logits, but the data '
        f'has {num_classes} classes'
      )

  def logits(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
    """Maps inputs `[batch, ...]` to logits `[batch, classes]`."""
    x = self._inputs(inputs)
    return self.module.apply(variables, x, **self._named(training=False))

  def losses(
    self,
    variables: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, PyTree]:
    """Training losses, and what a training step changes beside the parameters.

    Args:
      variables: of the module.
      inputs: `[batch, ...]`.
      labels: `[batch]`.
      keys: `[batch]`, of what is random for each example; None as in testing.
      mask: `[batch]`, False where a row only pads the batch: it does not count
        in the batch's statistics. None counts all.

    Returns:
      `[batch]` cross-entropies in nats, and the new `{'batch_stats': ...}`, or
      `{}` of a module without them.
    """
    # Statistics of batches stay as they are: flax.linen sums them in float32.
    variables = {**variables, 'params': self._computed(variables['params'])}
    x = self._computed(self._inputs(inputs))
    options: dict[str, Any] = self._named(keys is not None, keys, mask)
    if keys is not None and 'keys' not in self._names:
      options['rngs'] = {'dropout': jax.random.fold_in(keys[0], _BATCH)}
    if 'batch_stats' not in variables:
      logits, updated = self.module.apply(variables, x, **options), {}
    else:
      with nn.intercept_methods(functools.partial(_masked, mask)):
        logits, updated = self.module.apply(
          variables, x, mutable=['batch_stats'], **options
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return _cross_entropies(logits, labels), updated

  def test(
    self,
    variables: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over a batch of the loss and of correct predictions."""
    logits = self.logits(variables, inputs)
    losses = _cross_entropies(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    losses = jnp.where(weights > 0, losses, 0)  # of padding, maybe not finite
    return jnp.sum(weights * losses), jnp.sum(weights * correct)

  def _named(self, training, keys=None, mask=None):
    """Returns the arguments beside the inputs, those that the module names."""
    offered = {
      'keys': keys,
      'mask': mask,
      'train': training,
      'training': training,
      'deterministic': not training,
      'use_running_average': not training,
    }
    return {k: offered[k] for k in self._names & offered.keys()}

  @functools.cached_property
  def _names(self) -> frozenset[str]:
    """The names of the arguments that the module takes."""
    _, *more = inspect.signature(self.module.__call__).parameters
    return frozenset(more)

  def _computed(self, tree):
    """Returns a tree with its floats, and not its integers, in `dtype`."""

    def computed(x):
      floats = jnp.issubdtype(x.dtype, jnp.floating)
      return x.astype(self.dtype or x.dtype) if floats else x

    return jax.tree.map(computed, tree)

  def _inputs(self, inputs):
    if self.resize or self.crop:
      inputs = _resized(inputs, self.resize, self.crop)
    integers = jnp.issubdtype(inputs.dtype, jnp.integer)
    if self.mean is None and integers:
      return inputs
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    x = inputs.astype(jnp.float32 if integers else wide)
    if self.mean is None:
      return x
    return (x - jnp.array(self.mean)) / jnp.array(self.std)


_drawn = jax.jit(Classifier._draw, static_argnums=(0, 1))


def _masked(
  mask: jax.Array | None,
  call: Callable[..., Any],
  args: tuple[Any, ...],
  options: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  """Gives the batch's mask to a BatchNorm that is called without one."""
  normalises = isinstance(context.module, nn.BatchNorm)
  if mask is None or not normalises or context.method_name != '__call__':
    return call(*args, **options)
  if options.get('mask') is None:
    x = args[0] if args else options['x']
    if len(x) != len(mask):
      raise ValueError(
        f'a BatchNorm sees {list(x.shape)} of a batch of {len(mask)}: which '
        "rows are padding is not known, so the model's __call__ must name "
        '`mask` and pass what is right for these rows'
      )
    options = options | {'mask': mask.reshape(-1, *[1] * (x.ndim - 1))}
  return call(*args, **options)


def _resized(images, resize, crop):
  """The middle of the resized images, as torchvision's transforms cut it."""
  pixels = images.dtype == jnp.uint8
  if images.ndim != 4 or not (
    pixels or jnp.issubdtype(images.dtype, jnp.floating)
  ):
    raise ValueError(
      f'model.resize={resize} and model.crop={crop} are for images [height, '
      f'width, channels] of uint8 or floats, but an input is '
      f'{list(images.shape[1:])} of {images.dtype}'
    )
  images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  sides = images.shape[1:3]
  scaled = tuple(int(resize * s / min(sides)) if resize else s for s in sides)
  shape = (crop or scaled[0], crop or scaled[1])
  if min(scaled) < max(shape) and crop:
    raise ValueError(f'images of {scaled} have no middle of model.crop={crop}')
  offsets = [round((s - c) / 2) for s, c in zip(scaled, shape, strict=True)]
  if scaled == sides:
    top, left = offsets
    return images[:, top : top + shape[0], left : left + shape[1]]
  # What is not kept is not computed.
  images = jax.image.scale_and_translate(
    images,
    (len(images), *shape, images.shape[-1]),
    (1, 2),
    jnp.array([new / old for new, old in zip(scaled, sides, strict=True)]),
    -jnp.array(offsets, jnp.float32),
    'cubic',
  )
  # A cubic overshoots the range of pixels; floats have no range.
  return jnp.clip(images, 0, 255) if pixels else images


_cross_entropies = optax.softmax_cross_entropy_with_integer_labels
