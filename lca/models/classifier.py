"""The classifier: a Flax module with input preparation and a loss."""

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
# Folded into the key of a batch's first example, to make a key for the whole
# batch.
_WHOLE_BATCH = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A module that classifies its inputs, with the cross-entropy loss.

  The module is any `flax.linen.Module` whose `__call__` maps inputs
  `[batch, ...]` to logits `[batch, classes]`. It receives further arguments if
  the signature of its `__call__` names them:

  - `keys`: `[batch]` PRNG keys, one for each example, in training; None in
    testing. What is drawn from an example's key does not depend on the other
    examples of the batch (see `lca.models.kernels.convolution.dropout`).
  - `mask`: `[batch]` booleans, False for rows that only pad the batch to its
    full size; None if all rows count, as in testing.
  - `train` or `training`: True in training, False in testing.
  - `deterministic` or `use_running_average`: False in training, True in
    testing.

  Ordinary Flax modules work without these arguments. If the module does not
  name `keys`, it has a PRNG stream `'dropout'` in training, shared by the whole
  batch, so that `flax.linen.Dropout` works. If it does not name `mask`, each
  `flax.linen.BatchNorm` in it receives the mask, so that rows of padding never
  count in the batch statistics.

  Inputs are prepared on the device. Images, `[height, width, channels]` of
  uint8 or floats, can be resized and cropped; other inputs cannot. With `mean`
  and `std`, all inputs become the floats `(input - mean) / std`. Without them,
  floats keep their values (shorter ones become float32), and integers stay
  integers, as tokens must.

  Attributes:
    module: the module described above.
    mean: one number, or one for each entry of the inputs' last axis. For images
      this is one number per channel, in pixel units. None does not normalise.
    std: like `mean`.
    resize: the number of pixels of an image's shorter side after bicubic
      scaling; 0 does not scale.
    crop: the side of the square that is cut out of the centre after scaling, in
      pixels; 0 does not crop.
    pretrained: the weights to start from (see `load_pretrained`); '' draws
      random weights.
    dtype: the dtype in which a training step computes, forward and backward,
      such as `'bfloat16'`; None computes in the parameters' dtype. Parameters,
      their gradients, batch statistics and losses keep their own dtype. Testing
      ignores this option, and integers stay integers.

  Raises:
    TypeError: the module is not a `flax.linen.Module`.
    ValueError: a size is negative, the crop is larger than the resized side, or
      only one of `mean` and `std` is given.
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
    """Returns the module's initial variables.

    Args:
      key: the PRNG key of random weights. With pretrained weights, only the
        output layer may be random, if the number of classes differs.
      input_spec: shape and dtype of one input, without a batch, such as
        `Split.input_spec`.

    Raises:
      ValueError: the module cannot take such inputs, for example because images
        are too small for it; its logits are not `[batch, classes]`; it has
        variables other than parameters and batch statistics; or the pretrained
        weights do not fit.
      ImportError, OSError: see `load_pretrained`.
    """
    try:
      hash(self)
    except TypeError:
      # A module that holds arrays has no hash. It cannot be a static argument
      # of `_jitted_init`, and is compiled in every call.
      variables = jax.jit(functools.partial(self._random_init, input_spec))(key)
    else:
      variables = _jitted_init(self, input_spec, key)
    if not self.pretrained:
      return variables
    return load_pretrained(variables, self.pretrained)

  def _random_init(self, input_spec, key):
    """Returns random variables, after checking the module's outputs."""
    batch = jnp.zeros((1, *input_spec.shape), input_spec.dtype)
    x, arguments = self._prepare(batch), self._extra_arguments(training=False)
    name = type(self.module).__name__
    try:
      logits, variables = self.module.init_with_output(key, x, **arguments)
    except Exception as error:  # users' modules may raise anything
      raise ValueError(
        f'{name} cannot take an input of '
        f'{"x".join(map(str, input_spec.shape))} {input_spec.dtype}: {error}'
      ) from error
    if getattr(logits, 'ndim', None) != 2:
      raise ValueError(
        f'{name} must return logits [batch, classes], but for a batch of 1 it '
        f'returns {jax.tree.map(jnp.shape, logits)}'
      )
    if other := sorted(
      variables.keys() - set(_COLLECTIONS) - {'intermediates'}
    ):
      raise ValueError(
        f'{name} has the collections {other} beside params and batch_stats: '
        'only these two are trained and aggregated, so remove the others from '
        'the module'
      )
    # Intermediates that the module sows are dropped.
    return {k: v for k, v in variables.items() if k in _COLLECTIONS}

  def check_classes(
    self, variables: PyTree, input_spec: jax.ShapeDtypeStruct, num_classes: int
  ) -> None:
    """Checks that the module returns a logit for each class.

    Args:
      variables: the variables of the module.
      input_spec: shape and dtype of one input.
      num_classes: the number of classes of the data.

    Raises:
      ValueError: there are fewer logits than classes.
    """
    batch = jax.ShapeDtypeStruct((1, *input_spec.shape), input_spec.dtype)
    width = jax.eval_shape(self.logits, variables, batch).shape[-1]
    if width < num_classes:
      raise ValueError(
        f'{type(self.module).__name__} returns {width} logits, but the data '
        f'has {num_classes} classes'
      )

  def logits(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
    """Maps inputs `[batch, ...]` to logits `[batch, classes]`, for testing."""
    x = self._prepare(inputs)
    arguments = self._extra_arguments(training=False)
    return self.module.apply(variables, x, **arguments)

  def losses(
    self,
    variables: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, PyTree]:
    """Returns the losses of a training step, and the new batch statistics.

    Args:
      variables: the variables of the module.
      inputs: `[batch, ...]`.
      labels: `[batch]` class numbers.
      keys: `[batch]` PRNG keys, one for each example; None computes as in
        testing.
      mask: `[batch]` booleans, False for rows that only pad the batch and do
        not count in its statistics. None counts all rows.

    Returns:
      `[batch]` cross-entropies in nats, also of padding rows, and the updated
      `{'batch_stats': ...}`, or `{}` if the module has no batch statistics.
    """
    # Batch statistics are not cast: flax.linen sums them in float32.
    params = self._cast_floats(variables['params'])
    variables = {**variables, 'params': params}
    x = self._cast_floats(self._prepare(inputs))
    arguments: dict[str, Any] = self._extra_arguments(
      keys is not None, keys, mask
    )
    if keys is not None and 'keys' not in self._argument_names:
      arguments['rngs'] = {'dropout': jax.random.fold_in(keys[0], _WHOLE_BATCH)}
    if 'batch_stats' not in variables:
      logits, updated = self.module.apply(variables, x, **arguments), {}
    else:
      with nn.intercept_methods(functools.partial(_pass_mask, mask)):
        logits, updated = self.module.apply(
          variables, x, mutable=['batch_stats'], **arguments
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
    """Returns weighted sums of the loss and of correct predictions.

    Args:
      variables: the variables of the module.
      inputs: `[batch, ...]`.
      labels: `[batch]` class numbers.
      weights: `[batch]`, 0 for rows that only pad the batch.

    Returns:
      The sum of the cross-entropies in nats, and the sum of correct
      predictions, each row times its weight.
    """
    logits = self.logits(variables, inputs)
    losses = _cross_entropies(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    # The loss of a padding row may not be finite, and 0 * nan is nan.
    losses = jnp.where(weights > 0, losses, 0)
    return jnp.sum(weights * losses), jnp.sum(weights * correct)

  def _extra_arguments(self, training, keys=None, mask=None):
    """Returns the arguments beside the inputs that the module's call names."""
    available = {
      'keys': keys,
      'mask': mask,
      'train': training,
      'training': training,
      'deterministic': not training,
      'use_running_average': not training,
    }
    return {k: available[k] for k in self._argument_names & available.keys()}

  @functools.cached_property
  def _argument_names(self) -> frozenset[str]:
    """The names of the parameters of the module's call, without the inputs."""
    _, *names = inspect.signature(self.module.__call__).parameters
    return frozenset(names)

  def _cast_floats(self, tree):
    """Casts the floats of a tree to `dtype`; leaves integers unchanged."""

    def cast(x):
      is_float = jnp.issubdtype(x.dtype, jnp.floating)
      return x.astype(self.dtype or x.dtype) if is_float else x

    return jax.tree.map(cast, tree)

  def _prepare(self, inputs):
    """Resizes, crops and normalises inputs, as far as the options say."""
    if self.resize or self.crop:
      inputs = _resize_and_crop(inputs, self.resize, self.crop)
    is_integer = jnp.issubdtype(inputs.dtype, jnp.integer)
    if self.mean is None and is_integer:
      return inputs
    float_dtype = jnp.promote_types(inputs.dtype, jnp.float32)
    x = inputs.astype(jnp.float32 if is_integer else float_dtype)
    if self.mean is None:
      return x
    return (x - jnp.array(self.mean)) / jnp.array(self.std)


# One compilation serves all equal classifiers and inputs of one shape.
_jitted_init = jax.jit(Classifier._random_init, static_argnums=(0, 1))


def _pass_mask(
  mask: jax.Array | None,
  call: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  """Calls a method of a submodule, and passes the mask to a BatchNorm.

  Flax calls this interceptor in place of every method of every submodule. A
  BatchNorm that is called without a mask of its own receives the batch's mask.
  All other calls are unchanged.
  """
  is_batch_norm = isinstance(context.module, nn.BatchNorm)
  if mask is None or not is_batch_norm or context.method_name != '__call__':
    return call(*args, **kwargs)
  if kwargs.get('mask') is None:
    x = args[0] if args else kwargs['x']
    if len(x) != len(mask):
      raise ValueError(
        f'a BatchNorm receives {list(x.shape)} for a batch of {len(mask)}, so '
        "it is unknown which rows are padding: the model's __call__ must name "
        '`mask` and pass the BatchNorm a mask for these rows'
      )
    kwargs = kwargs | {'mask': mask.reshape(-1, *[1] * (x.ndim - 1))}
  return call(*args, **kwargs)


def _resize_and_crop(images, resize, crop):
  """Resizes images and cuts out their centre, as torchvision's transforms do.

  Args:
    images: `[batch, height, width, channels]` of uint8 or floats.
    resize: the shorter side after scaling, or 0.
    crop: the side of the square in the centre, or 0.

  Returns:
    Float images. The pixels of uint8 images stay within [0, 255].
  """
  is_uint8 = images.dtype == jnp.uint8
  if images.ndim != 4 or not (
    is_uint8 or jnp.issubdtype(images.dtype, jnp.floating)
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
    raise ValueError(
      f'images of {scaled} are smaller than model.crop={crop}: lower '
      'model.crop or set model.resize'
    )
  offsets = [round((s - c) / 2) for s, c in zip(scaled, shape, strict=True)]
  if scaled == sides:
    top, left = offsets
    return images[:, top : top + shape[0], left : left + shape[1]]
  # Scaling and cropping in one call computes only the pixels that are kept.
  images = jax.image.scale_and_translate(
    images,
    (len(images), *shape, images.shape[-1]),
    (1, 2),
    jnp.array([new / old for new, old in zip(scaled, sides, strict=True)]),
    -jnp.array(offsets, jnp.float32),
    'cubic',
  )
  # Cubic interpolation overshoots the range of pixels. Floats have no range.
  return jnp.clip(images, 0, 255) if is_uint8 else images


_cross_entropies = optax.softmax_cross_entropy_with_integer_labels
