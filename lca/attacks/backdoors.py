"""Backdoors: clients train a model to predict a target where a trigger is.

A Byzantine client puts a trigger on some of its examples and changes their
labels. Without the trigger the model is to stay good. The attack success rate
is the share of triggered test examples of which the model predicts the target;
examples that have the target as their label anyway do not count.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks import triggers
from lca.attacks.base import Attack, makes_attack
from lca.attacks.labels import (
  Boost,
  check_classes,
  check_flip,
  choose_examples,
  training_attack,
)
from lca.attacks.triggers import Corner, Trigger

Labels = Literal['all_to_one', 'one_to_one', 'all_to_all']


@makes_attack
def backdoor(
  trigger: Trigger,
  *,
  local_triggers: Sequence[Trigger] = (),
  labels: Labels = 'all_to_one',
  target: int = 0,
  source: int | None = None,
  share: float = 0.5,
  boost: Boost = 1.0,
) -> Attack:
  """Returns the attack of clients that train a backdoor.

  Args:
    trigger: changes pixels; see `lca.attacks.triggers`. It is put on the test
      examples.
    local_triggers: with these, attacker j puts trigger j, modulo their number,
      on its examples.
    labels: the labels of examples with the trigger. `'all_to_one'` gives all of
      them the target. `'one_to_one'` puts the trigger on examples of the source
      only, and gives them the target. `'all_to_all'` adds 1 to every label,
      modulo the number of classes.
    target: class that the model is to predict. `'all_to_all'` does not use it.
    source: class of the examples that `'one_to_one'` changes. The other kinds
      of labels need None.
    share: probability that an example of a Byzantine client gets the trigger,
      drawn once for a run.
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: an impossible value; or, once the data are known, inputs that
      are no images, or a class that the data do not have.

  Examples:
    >>> from lca import attacks
    >>> white = attacks.triggers.patch(height=2, width=2)
    >>> attack = attacks.backdoor(white, target=7, share=0.25, boost='n')

  References:
    Gu et al., BadNets: Evaluating backdooring attacks on deep neural networks,
    IEEE Access 2019; Bagdasaryan et al., AISTATS 2020.
  """
  options.one_of('all_to_one', 'one_to_one', 'all_to_all')('labels', labels)
  share = options.number(0, 1)('share', share)
  if (source is None) == (labels == 'one_to_one'):
    raise ValueError(
      "labels='one_to_one' needs a source, and other labels take none, got "
      f'labels={labels!r} with source={source!r}'
    )
  check_flip(source, target)

  def relabel(before, num_classes):
    """Returns the labels of triggered examples, and which ones to trigger."""
    if labels == 'all_to_all':
      return (before + 1) % num_classes, jnp.ones(before.shape, bool)
    check_classes(num_classes, target=target)
    new = jnp.full(before.shape, target, before.dtype)
    if source is None:
      return new, jnp.ones(before.shape, bool)
    check_classes(num_classes, source=source)
    return new, before == source

  def on_examples(
    inputs,
    before,
    *,
    client_id,
    attacker,
    num_classes,
    input_range,
    key,
    **numbers,
  ):
    _, chosen = choose_examples(
      key, client_id, len(before), numbers.get('share', share)
    )
    new, possible = relabel(before, num_classes)
    chosen &= possible
    triggered = _put(trigger, local_triggers, inputs, input_range, attacker)
    mask = chosen.reshape(-1, *[1] * (inputs.ndim - 1))
    return jnp.where(mask, triggered, inputs), jnp.where(chosen, new, before)

  def on_test(inputs, before, *, num_classes, input_range, **_):
    targets, counted = relabel(before, num_classes)
    images = triggers.on_images(trigger, inputs, input_range)
    return images, targets, counted & (targets != before)

  return training_attack(on_examples, boost, {'share': share}, on_test)


def _put(trigger, local_triggers, inputs, input_range, attacker):
  """Puts the trigger of an attacker on all inputs."""
  each = [
    functools.partial(triggers.on_images, one, input_range=input_range)
    for one in local_triggers or [trigger]
  ]
  return jax.lax.switch(attacker % len(each), each, inputs)


@makes_attack
def badnets(
  *,
  height: int = 4,
  width: int = 4,
  corner: Corner = 'bottom_right',
  margin: int = 1,
  value: float = 1.0,
  pixels: Sequence[Sequence[int]] | None = None,
  labels: Labels = 'all_to_one',
  target: int = 0,
  source: int | None = None,
  share: float = 0.3125,
  boost: Boost = 1.0,
) -> Attack:
  """Returns a backdoor whose trigger is a patch.

  Args:
    height, width, corner, margin, value: of the patch; see `triggers.patch`.
    pixels: pairs of row and column that are painted in the place of a
      rectangle, a patch of any shape; None paints the rectangle.
    labels, target, source, share, boost: see `backdoor`.

  Raises:
    ValueError: see `backdoor`.

  References:
    Gu et al., BadNets: Evaluating backdooring attacks on deep neural networks,
    IEEE Access 2019. The size of the patch and the share, 20 of 64 examples,
    are those of BackFed (arXiv:2507.04903) for images of 28 pixels.
  """
  trigger = triggers.patch(
    height=height, width=width, corner=corner, margin=margin, value=value
  )
  if pixels is not None:
    trigger = triggers.paint(pixels, value)
  return backdoor(
    trigger,
    labels=labels,
    target=target,
    source=source,
    share=share,
    boost=boost,
  )


@makes_attack
def blended(
  *,
  weight: float = 0.2,
  pattern_seed: int = 0,
  labels: Labels = 'all_to_one',
  target: int = 0,
  source: int | None = None,
  share: float = 0.3125,
  boost: Boost = 1.0,
) -> Attack:
  """Returns a backdoor whose trigger is a random pattern, blended in.

  Args:
    weight, pattern_seed: of the pattern; see `triggers.blend`.
    labels, target, source, share, boost: see `backdoor`.

  Raises:
    ValueError: see `backdoor`.

  References:
    Chen et al., arXiv:1712.05526.
  """
  trigger = triggers.blend(weight=weight, pattern_seed=pattern_seed)
  return backdoor(
    trigger,
    labels=labels,
    target=target,
    source=source,
    share=share,
    boost=boost,
  )


@makes_attack
def sinusoidal(
  *,
  amplitude: float = 20 / 255,
  frequency: float = 6.0,
  labels: Labels = 'all_to_one',
  target: int = 0,
  source: int | None = None,
  share: float = 0.3125,
  boost: Boost = 1.0,
) -> Attack:
  """Returns a backdoor whose trigger is a wave over the image.

  Args:
    amplitude, frequency: of the wave; see `triggers.sinusoid`.
    labels, target, source, share, boost: see `backdoor`.

  Raises:
    ValueError: see `backdoor`.

  References:
    Barni, Kallas and Tondi, ICIP 2019.
  """
  trigger = triggers.sinusoid(amplitude=amplitude, frequency=frequency)
  return backdoor(
    trigger,
    labels=labels,
    target=target,
    source=source,
    share=share,
    boost=boost,
  )


@makes_attack
def dba(
  *,
  width: int = 4,
  gap: int = 2,
  row_gap: int = 2,
  margin: int = 0,
  target: int = 2,
  share: float = 0.3125,
  boost: Boost = 1.0,
) -> Attack:
  """Returns the distributed backdoor attack, whose trigger has four parts.

  Attacker j trains with part j mod 4. The test examples get all four parts.

  Args:
    width, gap, row_gap, margin: see `triggers.local_patterns`.
    target, share, boost: see `backdoor`.

  Raises:
    ValueError: see `backdoor`.

  References:
    Xie et al., DBA: Distributed backdoor attacks against federated learning,
    ICLR 2020. The defaults are those of its code for MNIST, 20 of 64 examples.
  """
  parts = triggers.local_patterns(
    width=width, gap=gap, row_gap=row_gap, margin=margin
  )
  return backdoor(
    triggers.compose(parts),
    local_triggers=parts,
    target=target,
    share=share,
    boost=boost,
  )


@makes_attack
def edge_case(
  *,
  quarter_turns: int = 2,
  target: int = 1,
  source: int = 7,
  share: float = 0.5,
  boost: Boost = 1.0,
) -> Attack:
  """Returns a backdoor on rare examples: turned images of one class.

  Honest clients have no such images, so that their training does not correct
  the attackers' label. The sets of the paper cannot be had with a checksum.

  Args:
    quarter_turns: see `triggers.rotation`.
    target: label that the turned images get.
    source: class of the images.
    share, boost: see `backdoor`.

  Raises:
    ValueError: see `backdoor`.

  References:
    Wang et al., Attack of the tails: Yes, you really can backdoor federated
    learning, NeurIPS 2020.
  """
  return backdoor(
    triggers.rotation(quarter_turns=quarter_turns),
    labels='one_to_one',
    target=target,
    source=source,
    share=share,
    boost=boost,
  )
