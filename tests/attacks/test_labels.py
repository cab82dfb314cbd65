"""Label flipping, and model replacement, which boosts updates."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import BYZANTINE, IDS, KEY, labels

import lca
from lca import attacks


def flip(labels, num_classes=10, ids=IDS, **options):
  """Flips the labels `[n, S]` of clients, each by itself."""
  attack = jax.jit(
    functools.partial(attacks.flip_labels, num_classes=num_classes, **options)
  )
  return np.stack(
    [
      attack(row, client_id=client_id, key=KEY)
      for row, client_id in zip(labels, ids, strict=True)
    ]
  )


def test_flipped_labels_are_other_ones_and_uniform():
  before = labels()
  after = flip(before)
  assert after.dtype == before.dtype
  assert np.all(after != before)
  counts = np.bincount(((after - before) % 10).ravel(), minlength=10)
  # 12000 flips over 9 steps are 1333 each, with a standard deviation of 34; the
  # bound is five of them.
  assert counts[0] == 0 and np.all(np.abs(counts[1:] - 1333) < 170)


def test_the_flips_of_published_results_are_kept():
  """The checksums are those of the code that made them."""
  before = labels(500)[:3]
  for num_classes, checksum in ((10, 832586521), (2, 117303852)):
    after = flip(
      before % num_classes,
      num_classes,
      ids=IDS[:3],
      flip_fraction=0.4,
    )
    assert zlib.crc32(after.tobytes()) == checksum


def test_with_two_classes_a_flip_is_a_fair_coin():
  before = labels(num_classes=2)
  changed = flip(before, num_classes=2) != before
  assert abs(changed.mean() - 0.5) < 5 * 0.5 / np.sqrt(changed.size)


def test_flip_fraction():
  before = labels()
  changed = flip(before, flip_fraction=0.3) != before
  deviation = np.sqrt(0.3 * 0.7 / changed.size)
  assert abs(changed.mean() - 0.3) < 5 * deviation
  np.testing.assert_array_equal(flip(before, flip_fraction=0.0), before)


def test_a_clients_flips_are_its_own():
  before = labels(size=50)
  after = flip(before)
  turned = slice(None, None, -1)
  np.testing.assert_array_equal(
    flip(before[turned], ids=IDS[turned]), after[turned]
  )
  np.testing.assert_array_equal(flip(before[:, :20]), after[:, :20])
  assert np.any(after[0] - before[0] != after[2] - before[2])


@pytest.mark.parametrize(
  ('attack', 'flipped'),
  [
    (attacks.flip_complement(), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    (attacks.flip_next(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
    (attacks.flip_source(source=2, target=7), [0, 1, 7, 3, 4, 5, 6, 7, 8, 9]),
    (
      attacks.flip_mapping(mapping=(0, 0, 2, 2, 4, 4, 6, 6, 8, 8)),
      [0, 0, 2, 2, 4, 4, 6, 6, 8, 8],
    ),
  ],
)
def test_flips_to_labels_that_are_known(attack, flipped):
  before = np.arange(10, dtype=np.int32)
  inputs = np.zeros((10, 3))
  same, after = attack.on_examples(
    inputs, before, client_id=4, num_classes=10, key=KEY
  )
  assert same is inputs and after.dtype == before.dtype
  np.testing.assert_array_equal(after, flipped)


@pytest.mark.parametrize(
  ('attack', 'message'),
  [
    (
      attacks.flip_source(source=3),
      r'source must be a class .* \[0, 3\), got 3',
    ),
    (attacks.flip_source(target=-1), 'target must be'),
    (attacks.flip_source(target='2'), "an integer of at least 0, got '2'"),
    (attacks.flip_mapping(mapping=(0, 1)), 'an entry for each of 3 classes'),
    (attacks.flip_mapping(mapping=(0, 1, 3)), 'mapping must be a class'),
  ],
)
def test_flips_to_classes_that_are_not_there(attack, message):
  with pytest.raises(ValueError, match=message):
    attack.on_examples(None, np.arange(3), client_id=4, num_classes=3, key=KEY)


def test_a_flip_changes_the_label():
  with pytest.raises(ValueError, match='must be different classes, got 1'):
    attacks.flip_source(source=1, target=1)


@pytest.mark.parametrize('boost', ['x', float('nan'), None, float('inf')])
def test_a_boost_is_a_number_or_a_word(boost):
  message = "boost must be a finite number, 'replace' or 'n'"
  with pytest.raises(ValueError, match=message):
    attacks.model_replacement(jnp.ones(4), byzantine=BYZANTINE, boost=boost)
  with pytest.raises(ValueError, match=message):
    attacks.label_flipping(boost=boost)


def test_model_replacement_boosts_the_byzantine_rows():
  updates = {'w': jnp.ones((4, 2)), 'b': jnp.full((4,), 2.0, jnp.bfloat16)}
  for boost, factor in [('replace', 1.0), ('n', 4.0), (5.0, 5.0)]:
    boosted = attacks.model_replacement(
      updates, byzantine=BYZANTINE, boost=boost
    )
    np.testing.assert_array_equal(
      boosted['w'][:, 0], np.where(BYZANTINE, factor, 1.0)
    )
    assert boosted['b'].dtype == jnp.bfloat16
  alone = np.arange(100) == 17
  boosted = attacks.model_replacement(
    jnp.ones(100), byzantine=alone, boost='replace'
  )
  assert boosted[17] == 99  # as in the published code


def test_model_replacement_replaces_the_mean():
  updates = jnp.zeros((20, 3)).at[4].set(jnp.array([1.0, -2.0, 3.0]))
  byzantine = np.arange(20) == 4
  boosted = attacks.model_replacement(updates, byzantine=byzantine, boost='n')
  np.testing.assert_allclose(lca.mean(boosted), updates[4], rtol=1e-6)


def test_without_attackers_nothing_happens():
  nobody = np.zeros(4, bool)
  updates = jnp.arange(8.0).reshape(4, 2)
  for boost in ('replace', 'n', 3.0):
    np.testing.assert_array_equal(
      attacks.model_replacement(updates, byzantine=nobody, boost=boost), updates
    )
