"""A3FL: attackers train their trigger against models that unlearn it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.attacks import triggers
from lca.attacks.backdoors import backdoor
from lca.attacks.base import Adaptive, Attack, makes_attack
from lca.attacks.labels import Boost
from lca.attacks.training import Training
from lca.attacks.triggers import Corner
from lca.typing import PyTree

_BATCH = 64  # examples of a step of the trigger


@makes_attack
def a3fl(
  *,
  height: int = 5,
  width: int = 5,
  corner: Corner = 'bottom_right',
  margin: int = 1,
  target: int = 0,
  share: float = 0.3125,
  boost: Boost = 1.0,
  trigger_epochs: int = 100,
  stop_at: float = 0.7,
  step_size: float = 0.01,
  weight: float = 0.01,
  rebuild_every: int = 10,
  adversarial_epochs: int = 5,
  adversarial_rate: float = 0.01,
) -> Attack:
  r"""Returns a backdoor whose trigger is trained anew in every round.

  The trigger is a patch. Its pixels p, in [0, 1], are to work on the server's
  model :math:`\theta`, and on a model :math:`\theta'` that has unlearned them,
  as the honest clients' training makes the server's model do:

  .. math:: p \leftarrow \mathrm{clip}(p - \gamma\, \mathrm{sign} \nabla_p
      [L(\theta; \tau_p(x), t) + \lambda c\, L(\theta'; \tau_p(x), t)])

  where :math:`\tau_p` puts the trigger on an image, t is the target, and c is
  the mean cosine of the convolutions of both models (of all their arrays if
  there are none). :math:`\theta'` is :math:`\theta` after some epochs of SGD on
  images with the trigger and their true labels.

  The first attacker of a round trains the trigger, from that of the round
  before, on its own clean examples, until its share of successes is large
  enough or the epochs are over. All attackers of the round use it, and so does
  the test.

  Args:
    height, width, corner, margin: of the patch; see `triggers.patch`.
    target, share, boost: see `backdoor`.
    trigger_epochs: passes over the examples in a round, at most.
    stop_at: the share of the attacker's examples of other classes of which the
      server's model predicts the target, at which the training stops.
    step_size: :math:`\gamma`.
    weight: :math:`\lambda`; 0 trains against the server's model alone.
    rebuild_every: epochs after which :math:`\theta'` is made anew.
    adversarial_epochs, adversarial_rate: epochs and learning rate of
      :math:`\theta'`.

  Raises:
    ValueError: an impossible value; see also `backdoor`.

  References:
    Zhang et al., A3FL: Adversarially adaptive backdoor attacks to federated
    learning, NeurIPS 2023.
  """
  for name, value in {
    'trigger_epochs': trigger_epochs,
    'rebuild_every': rebuild_every,
    'adversarial_epochs': adversarial_epochs,
  }.items():
    options.whole(1)(name, value)
  options.number(0, 1)('stop_at', stop_at)
  options.number(0)('weight', weight)
  for name, rate in {
    'step_size': step_size,
    'adversarial_rate': adversarial_rate,
  }.items():
    options.positive(name, rate)
  patch: Any = triggers.patch(
    height=height, width=width, corner=corner, margin=margin
  )

  def with_pixels(pixels):
    trigger = functools.partial(patch, value=pixels)
    return backdoor(trigger, target=target, share=share, boost=boost)

  def on_examples(inputs, labels, *, memory, **facts):
    return with_pixels(memory).on_examples(inputs, labels, **facts)

  def on_test(inputs, labels, *, memory, **facts):
    on_test: Any = with_pixels(memory).on_test
    return on_test(inputs, labels, **facts)

  def init(input_shape, input_range):
    del input_range
    return jnp.full(input_shape, 0.5)

  adapt = functools.partial(
    _adapt,
    patch=patch,
    target=target,
    trigger_epochs=trigger_epochs,
    stop_at=stop_at,
    step_size=step_size,
    weight=weight,
    rebuild_every=rebuild_every,
    adversarial_epochs=adversarial_epochs,
    adversarial_rate=adversarial_rate,
  )
  return with_pixels(0.5)._replace(
    on_examples=on_examples,
    on_test=on_test,
    training=Training(),
    adaptive=Adaptive(init, adapt),
  )


def _adapt(
  pixels,
  *,
  losses,
  logits,
  variables,
  data,
  input_range,
  patch,
  target,
  trigger_epochs,
  stop_at,
  step_size,
  weight,
  rebuild_every,
  adversarial_epochs,
  adversarial_rate,
):
  """Returns the pixels of the trigger after their training in a round."""
  low, high = input_range
  size = min(_BATCH, len(data.labels))
  batches = -(-data.num_examples // size)

  def with_trigger(pixels, inputs):
    """Returns images as floats, so that there is a gradient."""
    images = (inputs.astype(jnp.float32) - low) / (high - low)
    return low + (high - low) * patch(images, value=pixels)

  def of_batch(i):
    """Returns the positions of batch i, and which of them are examples."""
    positions = i * size + jnp.arange(size)
    rows = jnp.minimum(positions, len(data.labels) - 1)
    return rows, positions < data.num_examples

  def loss(params, pixels, labels, i):
    """Returns the mean loss of batch i with the trigger."""
    rows, counted = of_batch(i)
    images = with_trigger(pixels, data.inputs[rows])
    each, _ = losses(
      {**variables, 'params': params}, images, labels[rows], None, counted
    )
    return jnp.sum(jnp.where(counted, each, 0)) / jnp.maximum(
      jnp.sum(counted), 1
    )

  def unlearned(pixels):
    """Trains the server's model on true labels in spite of the trigger."""

    def step(i, params):
      gradient = jax.grad(loss)(params, pixels, data.labels, i % batches)
      return jax.tree.map(
        lambda w, g: w - adversarial_rate * g, params, gradient
      )

    steps = adversarial_epochs * batches
    return lax.fori_loop(0, steps, step, variables['params'])

  targets = jnp.full_like(data.labels, target)

  def epoch(carry):
    number, pixels, other, _ = carry
    other = lax.cond(
      number % rebuild_every == 0, unlearned, lambda _: other, pixels
    )
    share = weight * _similarity(variables['params'], other)

    def both(pixels, i):
      first = loss(variables['params'], pixels, targets, i)
      return first + share * loss(other, pixels, targets, i)

    def step(i, pixels):
      downhill = jnp.sign(jax.grad(both)(pixels, i))
      return jnp.clip(pixels - step_size * downhill, 0, 1)

    pixels = lax.fori_loop(0, batches, step, pixels)
    return number + 1, pixels, other, success(pixels)

  def success(pixels):
    """Returns the share of examples with the trigger that hit the target."""

    def add(i, totals):
      rows, valid = of_batch(i)
      counted = valid & (data.labels[rows] != target)
      images = with_trigger(pixels, data.inputs[rows])
      predicted = jnp.argmax(logits(variables, images), axis=-1)
      hits = counted & (predicted == target)
      return totals + jnp.stack([jnp.sum(hits), jnp.sum(counted)])

    hits, counted = lax.fori_loop(0, batches, add, jnp.zeros(2, int))
    return hits / jnp.maximum(counted, 1)

  def goes_on(carry):
    number, *_, rate = carry
    return (number < trigger_epochs) & (rate < stop_at)

  start = jnp.zeros((), int), pixels, variables['params'], success(pixels)
  _, pixels, *_ = lax.while_loop(goes_on, epoch, start)
  return pixels


def _similarity(params: PyTree, other: PyTree) -> jax.Array:
  """Returns the mean cosine of the convolutions of two models."""
  pairs = list(
    zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
  )
  pairs = [pair for pair in pairs if pair[0].ndim == 4] or pairs
  cosines = [
    jnp.sum(x * y) / jnp.maximum(jnp.linalg.norm(x) * jnp.linalg.norm(y), 1e-12)
    for x, y in pairs
  ]
  return jnp.mean(jnp.stack(cosines))
