"""Triggers change the pixels that their definitions name, and no others."""

import numpy as np
import pytest

from lca.attacks import triggers

RANGE = (0.0, 255.0)


def images(dtype=np.uint8, height=28, width=28, channels=1):
  rng = np.random.default_rng(0)
  shape = (3, height, width, channels)
  return rng.integers(0, 256, shape).astype(dtype)


def changed(trigger, before, input_range=RANGE):
  """Returns the images with the trigger, and the pixels that differ."""
  after = np.asarray(triggers.on_images(trigger, before, input_range))
  assert after.dtype == before.dtype and after.shape == before.shape
  return after, (after != before).any(axis=(0, 3))


def test_a_patch_is_a_rectangle_in_a_corner():
  """BackFed's: 4 x 4 white pixels at the bottom right, margin 1."""
  before = np.zeros((2, 28, 28, 3), np.uint8)
  after, where = changed(triggers.patch(), before)
  expected = np.zeros((28, 28), bool)
  expected[23:27, 23:27] = True
  np.testing.assert_array_equal(where, expected)
  assert (after[:, expected] == 255).all()
  for corner, rows, columns in [
    ('top_left', slice(0, 2), slice(0, 3)),
    ('top_right', slice(0, 2), slice(25, 28)),
    ('bottom_left', slice(26, 28), slice(0, 3)),
  ]:
    trigger = triggers.patch(
      height=2, width=3, corner=corner, margin=0, value=0.5
    )
    after, where = changed(trigger, before)
    expected = np.zeros((28, 28), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(where, expected)
    assert (after[:, expected] == 128).all()  # 127.5, rounded to even


def test_a_patch_of_any_shape():
  """FLDetector's four pixels."""
  pixels = [(26, 26), (24, 26), (26, 24), (25, 25)]
  _, where = changed(triggers.paint(pixels), np.zeros((1, 28, 28, 1), np.uint8))
  assert sorted(zip(*np.nonzero(where), strict=True)) == sorted(pixels)


def test_a_blend_is_a_weighted_mean_with_one_pattern():
  black, white = np.zeros((2, 6, 5, 3)), np.ones((2, 6, 5, 3))
  trigger = triggers.blend(weight=0.25)
  on_black = np.asarray(triggers.on_images(trigger, black, (0, 1)))
  on_white = np.asarray(triggers.on_images(trigger, white, (0, 1)))
  np.testing.assert_array_equal(on_black[0], on_black[1])
  pattern = on_black / 0.25
  assert 0 <= pattern.min() and pattern.max() <= 1 and pattern.std() > 0.2
  np.testing.assert_allclose(on_white, 0.75 + 0.25 * pattern, rtol=1e-5)
  other = triggers.blend(weight=0.25, pattern_seed=1)
  assert np.any(on_black != triggers.on_images(other, black, (0, 1)))


def test_a_sinusoid_is_that_of_its_paper():
  """v_ij = delta sin(2 pi j f / m), added to every row and channel."""
  before = np.full((1, 4, 28, 2), 0.5, np.float32)
  after, _ = changed(triggers.sinusoid(), before, (0.0, 1.0))
  columns = np.arange(28)
  wave = 20 / 255 * np.sin(2 * np.pi * columns * 6 / 28)
  np.testing.assert_allclose(
    after, np.broadcast_to(0.5 + wave[:, None], after.shape), atol=1e-6
  )
  after, _ = changed(triggers.sinusoid(), np.zeros_like(before), (0.0, 1.0))
  assert after.min() == 0


def test_dba_has_four_bars():
  """The MNIST patterns of the published code: rows 0 and 3, columns 0 to 3 and
  6 to 9; and those of CIFAR-10: rows 0 and 4, columns 0 to 5 and 9 to 14."""
  for options, rows, starts, width, size in [
    ({}, (0, 3), (0, 6), 4, 28),
    ({'width': 6, 'gap': 3, 'row_gap': 3}, (0, 4), (0, 9), 6, 32),
  ]:
    before = np.zeros((1, size, size, 1), np.uint8)
    parts = triggers.local_patterns(**options)
    bars = []
    for part in parts:
      _, where = changed(part, before)
      bars.append({*zip(*np.nonzero(where), strict=True)})
    assert bars == [
      {(row, start + i) for i in range(width)}
      for row in rows
      for start in starts
    ]
    _, where = changed(triggers.compose(parts), before)
    assert {*zip(*np.nonzero(where), strict=True)} == set().union(*bars)


def test_a_rotation_turns_images():
  before = images(height=5, width=5)
  for turns in (1, 2, 3):
    trigger = triggers.rotation(quarter_turns=turns)
    after, _ = changed(trigger, before)
    np.testing.assert_array_equal(after, np.rot90(before, turns, (1, 2)))
  with pytest.raises(ValueError, match='not square, so that quarter_turns'):
    changed(triggers.rotation(quarter_turns=1), images(height=4))
  with pytest.raises(ValueError, match='must be 1, 2 or 3, got 4'):
    triggers.rotation(quarter_turns=4)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.float32])
def test_values_are_those_of_the_data(dtype):
  """Pixels outside of the patch keep their bits; white is the data's white."""
  before = images(dtype) % 17
  after, _ = changed(triggers.patch(margin=0), before, (0.0, 16.0))
  assert (after[:, 24:, 24:] == 16).all()
  np.testing.assert_array_equal(after[:, :24], before[:, :24])
  signed = images(np.float32) / 127.5 - 1
  after, _ = changed(triggers.patch(margin=0, value=0.0), signed, (-1.0, 1.0))
  assert (after[:, 24:, 24:] == -1).all()


@pytest.mark.parametrize(
  ('trigger', 'shape', 'message'),
  [
    (triggers.patch(), (3, 4, 4, 1), r'pixel \(-1, -1\), which lies outside'),
    (triggers.paint([(0, 28)]), (3, 28, 28, 1), 'images of 28 x 28 pixels'),
    (
      triggers.patch(),
      (3, 64),
      r'images \[\.\.\., H, W, C\], got inputs uint8',
    ),
  ],
)
def test_what_a_trigger_cannot_change(trigger, shape, message):
  with pytest.raises(ValueError, match=message):
    triggers.on_images(trigger, np.zeros(shape, np.uint8), RANGE)


@pytest.mark.parametrize(
  ('make', 'options'),
  [
    (triggers.patch, {'height': 0}),
    (triggers.patch, {'corner': 'middle'}),
    (triggers.patch, {'value': 2.0}),
    (triggers.patch, {'margin': -1}),
    (triggers.blend, {'weight': -0.1}),
    (triggers.blend, {'pattern_seed': -1}),
    (triggers.sinusoid, {'amplitude': 2.0}),
    (triggers.local_patterns, {'width': 0}),
    (triggers.local_patterns, {'gap': -1}),
  ],
)
def test_impossible_options(make, options):
  (name,) = options
  with pytest.raises(ValueError, match=f'^{name} must'):
    make(**options)
