"""Backdoors change the examples that their definitions name."""

import functools

import jax
import numpy as np
import pytest

from lca import attacks

KEY = jax.random.key(5)
FACTS = {'num_classes': 10, 'input_range': (0.0, 255.0)}
INPUTS = np.random.default_rng(1).integers(
  0, 200, (4000, 10, 10, 1), dtype=np.uint8
)
LABELS = np.random.default_rng(2).integers(0, 10, 4000, dtype=np.int32)
PATCH = (
  slice(None),
  slice(5, 9),
  slice(5, 9),
)  # of `badnets` in 10 x 10 pixels


def poisoned(attack, client_id=3, attacker=0, inputs=INPUTS, labels=LABELS):
  """Returns inputs, labels and the mask of examples that have changed."""
  on_examples = jax.jit(functools.partial(attack.on_examples, **FACTS))
  after = on_examples(
    inputs, labels, client_id=client_id, attacker=attacker, key=KEY
  )
  after_inputs, after_labels = map(np.asarray, after)
  assert after_inputs.dtype == inputs.dtype
  assert after_labels.dtype == labels.dtype
  changed = (after_inputs != inputs).any(axis=(1, 2, 3))
  return after_inputs, after_labels, changed


def test_a_share_of_the_examples_gets_patch_and_target():
  inputs, labels, changed = poisoned(attacks.badnets(target=4, share=0.3))
  assert abs(changed.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
  assert (inputs[changed][PATCH] == 255).all()
  assert (labels[changed] == 4).all()
  np.testing.assert_array_equal(labels[~changed], LABELS[~changed])
  outside = inputs.copy()
  outside[PATCH] = INPUTS[PATCH]
  np.testing.assert_array_equal(outside, INPUTS)


def test_one_to_one_changes_the_source_alone():
  attack = attacks.badnets(labels='one_to_one', source=7, target=1, share=1.0)
  _, labels, changed = poisoned(attack)
  np.testing.assert_array_equal(changed, LABELS == 7)
  assert (labels[changed] == 1).all()


def test_all_to_all_gives_the_next_label():
  attack = attacks.badnets(labels='all_to_all', share=1.0)
  _, labels, changed = poisoned(attack)
  assert changed.all()
  np.testing.assert_array_equal(labels, (LABELS + 1) % 10)


def test_the_draw_is_a_clients_own_and_ignores_padding():
  attack = attacks.badnets(share=0.5)
  *_, first = poisoned(attack)
  *_, other = poisoned(attack, client_id=4)
  assert np.any(first != other)
  *_, short = poisoned(attack, inputs=INPUTS[:100], labels=LABELS[:100])
  np.testing.assert_array_equal(short, first[:100])


def test_attackers_of_dba_share_the_trigger_out():
  attack = attacks.dba(width=3, share=1.0, target=2)
  whites = []
  for attacker in range(5):
    inputs, _, _ = poisoned(attack, attacker=attacker)
    whites.append({*zip(*np.nonzero((inputs == 255).all((0, 3))), strict=True)})
  bar = lambda row, column: {(row, column + i) for i in range(3)}  # noqa: E731
  assert whites == [bar(0, 0), bar(0, 5), bar(3, 0), bar(3, 5), bar(0, 0)]
  tested, targets, _ = attack.on_test(INPUTS, LABELS, **FACTS)
  white = (np.asarray(tested) == 255).all((0, 3))
  assert {*zip(*np.nonzero(white), strict=True)} == set().union(*whites)
  assert (targets == 2).all()


def test_edge_cases_are_turned_images_of_one_class():
  attack = attacks.edge_case(source=7, target=1, share=1.0)
  inputs, labels, changed = poisoned(attack)
  np.testing.assert_array_equal(changed, LABELS == 7)
  np.testing.assert_array_equal(inputs[changed], INPUTS[changed][:, ::-1, ::-1])
  assert (labels[changed] == 1).all()


@pytest.mark.parametrize(
  ('options', 'targets', 'counted'),
  [
    ({'target': 4}, 4, LABELS != 4),
    (
      {'labels': 'one_to_one', 'source': 7, 'target': 1},
      1,
      LABELS == 7,
    ),
    ({'labels': 'all_to_all'}, (LABELS + 1) % 10, True),
  ],
)
def test_examples_of_the_target_do_not_count(options, targets, counted):
  attack = attacks.badnets(**options)
  inputs, got_targets, got_counted = attack.on_test(INPUTS, LABELS, **FACTS)
  assert (np.asarray(inputs)[PATCH] == 255).all()
  expected = np.broadcast_to(counted, LABELS.shape)
  np.testing.assert_array_equal(got_counted, expected)
  wanted = np.broadcast_to(targets, LABELS.shape)
  np.testing.assert_array_equal(
    np.asarray(got_targets)[expected], wanted[expected]
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'share': 1.5}, 'share must'),
    ({'labels': 'some'}, 'labels must'),
    ({'labels': 'one_to_one'}, "labels='one_to_one' needs a source"),
    ({'source': 3}, 'other labels take none'),
    ({'boost': 'x'}, 'boost must'),
    ({'height': 0}, 'height must'),
    ({'labels': 'one_to_one', 'source': 0}, 'must be different classes'),
    ({'pixels': (3, 3)}, r'pixels must be pairs .* got \(3, 3\)'),
    ({'pixels': ((1.5, 2),)}, 'pixels must be pairs'),
    ({'pixels': ((1, 2, 3),)}, 'pixels must be pairs'),
    ({'pixels': ()}, 'pixels must be pairs'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(ValueError, match=message):
    attacks.badnets(**options)


def test_a_target_is_a_class_of_the_data():
  with pytest.raises(ValueError, match=r'target must be a class .* got 10'):
    poisoned(attacks.badnets(target=10))
  with pytest.raises(ValueError, match='target must be an integer'):
    attacks.badnets(target=-1).on_test(INPUTS, LABELS, **FACTS)


def test_a_boost_makes_it_model_replacement():
  updates, byzantine = np.ones((5, 2)), np.arange(5) == 2
  boosted = attacks.badnets(boost=3.0).on_updates(updates, byzantine=byzantine)
  np.testing.assert_array_equal(boosted[:, 0], [1, 1, 3, 1, 1])
