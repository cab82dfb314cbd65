"""What Byzantine clients do to labels and updates."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import lca
from lca import attacks

KEY = jax.random.key(3)
IDS = np.array([7, 2, 9, 4])
BYZANTINE = np.array([True, False, True, False])


def flip(labels, num_classes=10, ids=IDS, byzantine=BYZANTINE, **options):
  attack = functools.partial(
    attacks.flip_labels, num_classes=num_classes, **options
  )
  return np.asarray(
    jax.jit(attack)(labels, byzantine=byzantine, client_ids=ids, key=KEY)
  )


def labels(size=3000, num_classes=10):
  return np.random.default_rng(0).integers(
    0, num_classes, (len(IDS), size), dtype=np.int32
  )


def test_flipped_labels_are_other_ones_and_uniform():
  before = labels()
  after = flip(before)
  assert after.dtype == before.dtype
  np.testing.assert_array_equal(after[~BYZANTINE], before[~BYZANTINE])
  assert np.all(after[BYZANTINE] != before[BYZANTINE])
  steps = (after - before)[BYZANTINE] % 10
  counts = np.bincount(steps.ravel(), minlength=10)
  # 6000 flips over 9 steps: 667 each, with a deviation of 24: five of them.
  assert counts[0] == 0 and np.all(np.abs(counts[1:] - 667) < 120)


def test_with_two_classes_a_flip_is_a_fair_coin():
  before = labels(num_classes=2)
  changed = (flip(before, num_classes=2) != before)[BYZANTINE]
  assert abs(changed.mean() - 0.5) < 5 * 0.5 / np.sqrt(changed.size)


def test_flip_fraction():
  before = labels()
  changed = (flip(before, flip_fraction=0.3) != before)[BYZANTINE]
  deviation = np.sqrt(0.3 * 0.7 / changed.size)
  assert abs(changed.mean() - 0.3) < 5 * deviation
  np.testing.assert_array_equal(flip(before, flip_fraction=0.0), before)


def test_a_clients_flips_are_its_own():
  before = labels(size=50)
  after = flip(before)
  turned = slice(None, None, -1)
  np.testing.assert_array_equal(
    flip(before[turned], ids=IDS[turned], byzantine=BYZANTINE[turned]),
    after[turned],
  )
  np.testing.assert_array_equal(flip(before[:, :20]), after[:, :20])
  assert np.any(after[0] - before[0] != after[2] - before[2])


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
  assert boosted[17] == 99  # the published code's


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
  np.testing.assert_array_equal(flip(labels(5), byzantine=nobody), labels(5))


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'lable_flipping'}, "unknown attack 'lable_flipping'"),
    ({'name': 'label_flipping', 'flip_fraction': 1.5}, 'flip_fraction'),
    ({'name': 'label_flipping', 'boost': 'replase'}, "'replace' or 'n'"),
  ],
)
def test_wrong_configs(config, message):
  with pytest.raises(ValueError, match=message):
    attacks.make(config)


def test_a_boost_may_be_written_as_text():
  attack = attacks.make({'name': 'label_flipping', 'boost': '10'})
  boosted = attack.on_updates(jnp.ones(4), byzantine=BYZANTINE, key=KEY)
  np.testing.assert_array_equal(boosted, np.where(BYZANTINE, 10, 1))


def test_none_takes_no_keys():
  assert attacks.make({'name': 'none'}) is attacks.NO_ATTACK
  with pytest.raises(TypeError, match='boost'):
    attacks.make({'name': 'none', 'boost': 3.0})


# The updates ---------------------------------------------------------------


def stack(n=11, seed=0, dtype=np.float32):
  """Random updates `[n, ...]` with a common part, so that a mean stands out."""
  rng = np.random.default_rng([seed, n])

  def one(*shape):
    common = rng.normal(size=shape)
    return (common + rng.normal(size=(n, *shape))).astype(dtype)

  return {'params': {'Conv_0': {'kernel': one(3, 2, 5)}, 'scale': one()}}


def vectors(n=11, seed=0):
  """Of one leaf."""
  return stack(n, seed)['params']['Conv_0']['kernel'][:, 0, 0]


def mask(n, m, seed=0):
  """m Byzantine clients at random positions."""
  chosen = np.zeros(n, bool)
  chosen[np.random.default_rng([seed, n, m]).permutation(n)[:m]] = True
  return chosen


def flat(tree):
  """Stacked updates as rows `[n, d]` in float64."""
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def flat_update(update):
  return flat(jax.tree.map(lambda x: np.asarray(x)[None], update))[0]


def with_rows(tree, rows, value):
  def one(leaf):
    leaf = np.array(leaf)
    leaf[rows] = value
    return leaf

  return jax.tree.map(one, tree)


RULE = functools.partial(lca.krum, f=2)

OPTIONS = {
  'alie': {},
  'constant': {'value': -3.0},
  'fall_of_empires': {'epsilon': 0.7},
  'fang_krum': {'f': 2},
  'fang_trimmed_mean': {},
  'gaussian': {'sigma': 2.0, 'mu': 1.0},
  'mimic': {},
  'min_max': {},
  'min_sum': {'direction': 'unit'},
  'non_finite': {'value': '-inf'},
  'optimized': {'aggregate': RULE, 'num_strengths': 4},
  'sign_flip': {'scale': 2.0},
  'zero': {},
}
COLLUDING = [
  'alie',
  'fall_of_empires',
  'fang_krum',
  'fang_trimmed_mean',
  'mimic',
  'min_max',
  'min_sum',
  'optimized',
]

every = pytest.mark.parametrize('name', OPTIONS)
colluding = pytest.mark.parametrize('name', COLLUDING)


def plain(name, tree, byzantine, key=KEY, **options):
  attack = getattr(attacks, name)
  return attack(tree, byzantine=byzantine, key=key, **(OPTIONS[name] | options))


def compiled(name, tree, byzantine, key=KEY, **options):
  return _compiled(name, tuple(options.items()), tree, byzantine, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(name, options, tree, byzantine, key):
  return plain(name, tree, byzantine, key, **dict(options))


def sent(name, tree, byzantine, **options):
  """What the Byzantine clients send, `[m, d]`."""
  return flat(compiled(name, tree, byzantine, **options))[byzantine]


def test_every_attack_on_updates_is_here():
  assert sorted([*OPTIONS, 'label_flipping']) == sorted(attacks.ATTACKS)


@every
@pytest.mark.parametrize('m', [0, 3, 11])
def test_honest_rows_come_back_bit_for_bit(name, m):
  tree = stack()
  tree['params']['Conv_0']['kernel'][:, 0, 0, :3] = [-0.0, 1e-40, 0.0]
  byzantine = mask(11, m)
  out = compiled(name, tree, byzantine)
  assert jax.tree.structure(out) == jax.tree.structure(tree)
  for before, after in zip(
    jax.tree.leaves(tree), jax.tree.leaves(out), strict=True
  ):
    assert after.dtype == before.dtype and after.shape == before.shape
    assert (
      np.asarray(after)[~byzantine].tobytes() == before[~byzantine].tobytes()
    )
    if name != 'non_finite':
      assert np.all(np.isfinite(np.asarray(after, np.float32)))


@every
def test_vmap_is_a_loop(name):
  trees = [stack(seed=seed) for seed in range(3)]
  masks = [mask(11, m, seed=m) for m in (2, 0, 4)]
  keys = jax.random.split(KEY, 3)
  batch = jax.tree.map(lambda *x: np.stack(x), *trees)
  outs = jax.jit(jax.vmap(functools.partial(plain, name)))(
    batch, np.stack(masks), keys
  )
  for i, (tree, byzantine) in enumerate(zip(trees, masks, strict=True)):
    np.testing.assert_allclose(
      flat(jax.tree.map(lambda x, i=i: x[i], outs)),
      flat(compiled(name, tree, byzantine, keys[i])),
      rtol=1e-5,
      atol=1e-6,
    )


@colluding
@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
def test_what_attackers_computed_does_not_show(name, value):
  tree, byzantine = stack(), mask(11, 3)
  jax.tree.map(
    np.testing.assert_array_equal,
    compiled(name, with_rows(tree, byzantine, value), byzantine),
    compiled(name, tree, byzantine),
  )


@colluding
def test_an_honest_client_without_an_answer_is_left_out(name):
  byzantine = mask(11, 3)
  absent = np.flatnonzero(~byzantine)[2]
  tree = with_rows(stack(), absent, np.nan)
  out = flat(compiled(name, tree, byzantine))[byzantine]
  assert np.all(np.isfinite(out))
  # Of Krum's f = 2, and ALIE's number of clients, nothing changes.
  huge = with_rows(tree, absent, 1e25)
  np.testing.assert_array_equal(
    flat(compiled(name, huge, byzantine))[byzantine], out
  )


@colluding
def test_with_no_honest_client_they_send_zeros(name):
  everybody = np.ones(11, bool)
  np.testing.assert_array_equal(flat(compiled(name, stack(), everybody)), 0)


@every
def test_bfloat16_is_computed_in_float32(name):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stack())
  exact = jax.tree.map(lambda x: x.astype(np.float32), half)
  byzantine = mask(11, 3)
  out = compiled(name, half, byzantine)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(out))
  np.testing.assert_array_equal(flat(out)[~byzantine], flat(half)[~byzantine])
  # One rounding, to 8 bits.
  np.testing.assert_allclose(
    flat(out), flat(compiled(name, exact, byzantine)), rtol=2**-8
  )


@every
def test_float64_stays(name):
  with jax.enable_x64(True):
    leaf = stack(dtype=np.float64)['params']['Conv_0']['kernel']
    byzantine = mask(11, 3)
    out = jax.jit(functools.partial(plain, name))(leaf, byzantine)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out[~byzantine], leaf[~byzantine])


@every
def test_an_attack_is_its_function(name):
  """Eagerly, and of one leaf of numbers: that is a tree, too."""
  options = {k: v for k, v in OPTIONS[name].items() if k != 'aggregate'}
  config = {'name': name, 'num_attackers': 4, 'sampled': True, **options}
  attack = attacks.make(config)
  leaf, byzantine = stack()['params']['scale'], mask(11, 3)
  out = attack.on_updates(leaf, byzantine=byzantine, key=KEY, aggregate=RULE)
  np.testing.assert_array_equal(out[~byzantine], leaf[~byzantine])
  assert np.all(out[byzantine] != leaf[byzantine])
  want = compiled(name, leaf, byzantine)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  before = labels(5)
  assert attack.on_labels(before, byzantine=BYZANTINE) is before


# Noise and constants -------------------------------------------------------


def reached(name, **options):
  """The mean of all 11, 3 of them Byzantine; the honest mean, the honest."""
  tree, byzantine = stack(), mask(11, 3)
  mean = flat_update(lca.mean(compiled(name, tree, byzantine, **options)))
  honest = flat(tree)[~byzantine]
  return mean, honest.mean(axis=0), honest


@pytest.mark.parametrize(
  ('name', 'options', 'left'),
  [
    ('zero', {}, 8 / 11),  # of the honest mean
    ('fall_of_empires', {'epsilon': 0.001}, (8 - 3 * 0.001) / 11),
    ('fall_of_empires', {'epsilon': 4.0}, (8 - 3 * 4) / 11),  # turned round
  ],
)
def test_what_shortens_or_turns_the_mean(name, options, left):
  got, mean, _ = reached(name, **options)
  np.testing.assert_allclose(got, left * mean, rtol=1e-5, atol=1e-6)


def test_what_leads_the_mean_away():
  got, mean, _ = reached('constant', value=1e6)
  np.testing.assert_allclose(got, (8 * mean + 3e6) / 11, rtol=1e-5)
  got, mean, _ = reached('gaussian', sigma=200.0, mu=0.0)
  noise = np.linalg.norm(got - 8 / 11 * mean)
  # A chi of 3 x 31 numbers, which is within 5 deviations of its mean.
  assert abs(noise / (200 * np.sqrt(3 * got.size) / 11) - 1) < 5 / np.sqrt(
    2 * 3 * got.size
  )
  got, mean, _ = reached('sign_flip', scale=2.0)
  everybody = flat(stack()).mean(axis=0)
  own = (11 * everybody - 8 * mean) / 11  # the attackers' part of it
  np.testing.assert_allclose(got, everybody - 3 * own, rtol=1e-4, atol=1e-5)
  assert not np.any(np.isfinite(reached('non_finite')[0]))


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('alie', {}),
    ('fang_krum', {'f': 2}),
    ('fang_trimmed_mean', {}),
    ('min_max', {'direction': 'sign'}),
    ('min_sum', {'direction': 'sign'}),
  ],
)
def test_what_holds_the_mean_back_in_every_coordinate(name, options):
  got, mean, honest = reached(name, **options)
  against = -np.ones_like(mean) if name == 'alie' else -np.sign(mean)
  assert np.all((got - mean) * against >= -1e-6)
  spread = np.linalg.norm(honest[:, None] - honest, axis=2).max()
  if name.startswith('min_'):  # no farther than honest rows are apart
    assert np.linalg.norm(got - mean) <= 3 / 11 * spread * (1 + 1e-5)


def test_mimic_leads_the_mean_no_farther_than_an_honest_client():
  got, mean, honest = reached('mimic')
  away = np.linalg.norm(honest - mean, axis=1)
  moved = np.linalg.norm(got - mean)
  assert 3 / 11 * away.min() * (1 - 1e-5) <= moved
  assert moved <= 3 / 11 * away.max() * (1 + 1e-5)


def test_gaussian_rows_are_independent_normals():
  tree = {'a': np.ones((5, 40_000), np.float32), 'b': np.ones((5, 10_000))}
  byzantine = np.array([False, True, False, True, True])
  rows = sent('gaussian', tree, byzantine, mu=3.0, sigma=20.0)
  draws = (rows - 3) / 20
  # Five deviations of the mean, of the variance and of a correlation.
  bound = 5 / np.sqrt(draws.shape[1])
  assert np.all(np.abs(draws.mean(axis=1)) < bound)
  assert np.all(np.abs(draws.var(axis=1) - 1) < np.sqrt(2) * bound)
  assert np.all(np.abs(np.corrcoef(draws)[np.triu_indices(3, 1)]) < bound)
  assert abs(np.mean(np.abs(draws) < 0.6744898) - 0.5) < 0.5 * bound
  a, b = draws[:, :10_000], draws[:, 40_000:]
  assert abs(np.mean(a * b)) < 5 / np.sqrt(a.size)  # leaves are, too


def test_gaussian_depends_on_the_key():
  tree, byzantine = stack(), mask(11, 3)
  first, again, other = (
    flat(compiled('gaussian', tree, byzantine, jax.random.key(seed)))[byzantine]
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.all(first != other)


def test_gaussian_in_some_layers_alone():
  tree, byzantine = stack(), mask(11, 3)
  out = compiled('gaussian', tree, byzantine, layers='_0/kern|bias$')['params']
  same = np.testing.assert_array_equal
  same(out['scale'], tree['params']['scale'])
  new, old = out['Conv_0']['kernel'], tree['params']['Conv_0']['kernel']
  same(new[~byzantine], old[~byzantine])
  assert np.all(new[byzantine] != old[byzantine])
  with pytest.raises(ValueError, match=r'params/Conv_0/kernel'):
    plain('gaussian', tree, byzantine, layers='params/Conv_1')


def test_gaussian_draws_for_the_attackers_alone():
  jaxpr = str(
    jax.make_jaxpr(functools.partial(plain, 'gaussian'))(
      np.zeros((25, 1000), np.float32), mask(25, 4)
    )
  )
  assert re.search(r'f32\[1000\] = erf_inv', jaxpr)
  assert not re.search(r'f32\[25,1000\] = erf_inv', jaxpr)


def test_constants():
  tree, byzantine = stack(), mask(11, 3)
  np.testing.assert_array_equal(sent('zero', tree, byzantine), 0)
  np.testing.assert_array_equal(
    sent('constant', tree, byzantine, value=7.5), 7.5
  )
  for value in ('nan', 'inf', '-inf'):
    np.testing.assert_array_equal(
      sent('non_finite', tree, byzantine, value=value), float(value)
    )


def test_sign_flip_turns_a_clients_own_row():
  tree, byzantine = stack(), mask(11, 3)
  np.testing.assert_array_equal(
    sent('sign_flip', tree, byzantine, scale=4.0), -4 * flat(tree)[byzantine]
  )


# Collusion -----------------------------------------------------------------


@pytest.mark.parametrize(('m', 'epsilon'), [(1, 0.5), (5, 0.001), (8, 2.0)])
def test_fall_of_empires_scales_the_mean(m, epsilon):
  tree, byzantine = stack(), mask(11, m)
  mean = flat(tree)[~byzantine].mean(axis=0)
  rows = sent('fall_of_empires', tree, byzantine, epsilon=epsilon)
  np.testing.assert_allclose(
    rows, np.tile(-epsilon * mean, (m, 1)), rtol=1e-5, atol=1e-6
  )
  attacked = compiled('fall_of_empires', tree, byzantine, epsilon=epsilon)
  np.testing.assert_allclose(
    flat_update(lca.mean(attacked)),
    (11 - m - epsilon * m) / 11 * mean,
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('n', 'm'), [(5, 1), (6, 1), (11, 3), (25, 4), (25, 11), (50, 24), (100, 1)]
)
def test_alie_is_the_papers_z(n, m):
  byzantine = mask(n, m)
  tree = vectors(n)
  supporters = np.floor(n / 2 + 1) - m
  z = scipy.stats.norm.ppf((n - m - supporters) / (n - m))
  honest = flat(tree)[~byzantine]
  want = honest.mean(axis=0) - z * honest.std(axis=0)
  np.testing.assert_allclose(
    sent('alie', tree, byzantine), np.tile(want, (m, 1)), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(('n', 'signs'), [(15, [0, 1, 1]), (16, [-1, 0, 1])])
def test_alie_of_few_attackers_is_none_without_a_z(n, signs):
  tree = vectors(n)
  for m, sign in enumerate(signs, start=1):
    byzantine = mask(n, m)
    honest = flat(tree)[~byzantine]
    step = sent('alie', tree, byzantine)[0] - honest.mean(axis=0)
    z = -np.mean(step / honest.std(axis=0))
    assert np.sign(np.round(z, 5)) == sign


def test_alie_with_a_z_of_ones_own_and_under_the_mean():
  tree, byzantine = stack(), mask(11, 4)
  honest = flat(tree)[~byzantine]
  mean, std = honest.mean(axis=0), honest.std(axis=0)
  out = compiled('alie', tree, byzantine, z=1.5)
  np.testing.assert_allclose(
    flat_update(lca.mean(out)), mean - 4 / 11 * 1.5 * std, rtol=1e-5, atol=1e-5
  )


def test_alie_with_a_majority_or_one_honest_client_is_finite():
  for n, m in [(11, 8), (11, 10), (2, 1)]:
    assert np.all(np.isfinite(sent('alie', vectors(n), mask(n, m))))


def test_alie_follows_close_clients_far_from_zero():
  rng = np.random.default_rng(0)
  rows = (1000 + rng.normal(size=(25, 300))).astype(np.float32)
  byzantine = mask(25, 4)
  honest = rows[~byzantine].astype(np.float64)
  want = honest.mean(axis=0) - 2 * honest.std(axis=0)
  # float32's spacing at 1000 is 6e-5; a mean of squares would be off by 0.1.
  np.testing.assert_allclose(
    sent('alie', rows, byzantine, z=2.0), np.tile(want, (4, 1)), atol=5e-4
  )


@pytest.mark.parametrize('seed', range(4))
def test_mimic_copies_the_most_extreme_client(seed):
  tree, byzantine = stack(seed=seed), mask(11, 3, seed)
  honest = flat(tree)[~byzantine]
  centred = honest - honest.mean(axis=0)
  direction = np.linalg.svd(centred)[2][0]
  want = honest[np.argmax(np.abs(centred @ direction))]
  np.testing.assert_array_equal(
    sent('mimic', tree, byzantine), np.tile(want, (3, 1))
  )


def test_mimic_of_a_given_client():
  tree, byzantine = stack(), mask(11, 3)
  honest = flat(tree)[~byzantine]
  for target, copied in [(0, 0), (5, 5), (7, 7), (10, 7)]:
    np.testing.assert_array_equal(
      sent('mimic', tree, byzantine, target=target),
      np.tile(honest[copied], (3, 1)),
    )
  with pytest.raises(ValueError, match='n=11, target=11'):
    plain('mimic', tree, byzantine, target=11)


# Distances -----------------------------------------------------------------


def directions(honest):
  mean = honest.mean(axis=0)
  return {'unit': -mean, 'std': -honest.std(axis=0), 'sign': -np.sign(mean)}


def max_excess(row, honest):
  """How much farther the row is from the honest than they are."""
  between = np.linalg.norm(honest[:, None] - honest, axis=2)
  return np.max(np.linalg.norm(row - honest, axis=1)) / np.max(between)


def sum_excess(row, honest):
  between = np.sum((honest[:, None] - honest) ** 2, axis=(1, 2))
  return np.sum((row - honest) ** 2) / np.max(between)


@pytest.mark.parametrize('direction', ['unit', 'std', 'sign'])
@pytest.mark.parametrize(
  ('name', 'excess'), [('min_max', max_excess), ('min_sum', sum_excess)]
)
@pytest.mark.parametrize('seed', range(3))
def test_the_farthest_row_that_distances_allow(name, excess, direction, seed):
  tree, byzantine = stack(seed=seed), mask(11, 3, seed)
  honest = flat(tree)[~byzantine]
  rows = sent(name, tree, byzantine, direction=direction)
  assert np.all(rows == rows[0])
  mean = honest.mean(axis=0)
  step, p = rows[0] - mean, directions(honest)[direction]
  length = np.linalg.norm(step)
  cosine = step @ p / length / np.linalg.norm(p)
  assert cosine > 1 - 1e-6 and length > 0.1
  assert excess(rows[0], honest) < 1 + 1e-5
  assert excess(mean + 1.0001 * step, honest) > 1


def test_two_honest_clients():
  """Half of the distance is on either side of their mean."""
  rows, byzantine = np.array([[0.0, 0], [9, 9], [2, 0]]), mask(3, 0)
  byzantine[1] = True
  # std is (1, 0): the row at distance 2 from the farther one is the nearer.
  np.testing.assert_allclose(
    sent('min_max', rows, byzantine), [[0, 0]], atol=1e-6
  )
  # sign is (1, 0), too; sum: 2 (1 + g^2) <= 4, and g = 1.
  np.testing.assert_allclose(
    sent('min_sum', rows, byzantine, direction='sign'), [[0, 0]], atol=1e-6
  )


@pytest.mark.parametrize('name', ['min_max', 'min_sum'])
def test_distances_of_close_clients_far_from_zero(name):
  rng = np.random.default_rng(0)
  rows = (1000 + rng.normal(size=(11, 300))).astype(np.float32)
  byzantine = mask(11, 3)
  honest = rows[~byzantine].astype(np.float64)
  excess = max_excess if name == 'min_max' else sum_excess
  out = sent(name, rows, byzantine)[0]
  # Rounding the row moves it by 3e-5 a coordinate, of deviations of 1.
  assert abs(excess(out, honest) - 1) < 1e-4


@pytest.mark.parametrize('name', ['min_max', 'min_sum'])
@pytest.mark.parametrize('direction', ['unit', 'std', 'sign'])
def test_identical_clients_leave_no_room(name, direction):
  tree = jax.tree.map(lambda x: np.repeat(x[:1], 11, axis=0), stack())
  byzantine = mask(11, 3)
  np.testing.assert_allclose(
    sent(name, tree, byzantine, direction=direction),
    flat(tree)[byzantine],
    rtol=1e-5,
    atol=1e-5,
  )


# Fang et al. ---------------------------------------------------------------


def krum_index(rows, f):
  between = np.sum((rows[:, None] - rows) ** 2, axis=2)
  np.fill_diagonal(between, np.inf)
  nearest = np.sort(between, axis=1)[:, : len(rows) - f - 2]
  return np.argmin(nearest.sum(axis=1))


def fang_strength(rows, byzantine, f, threshold=1e-5):
  """Algorithm and theorem 1, over models less the server's."""
  n, m, d = len(rows), byzantine.sum(), rows.shape[1]
  honest = rows[~byzantine]
  signs = np.sign(honest.mean(axis=0))
  between = np.sum((honest[:, None] - honest) ** 2, axis=2)
  np.fill_diagonal(between, np.inf)
  nearest = np.sort(between, axis=1)[:, : n - m - 2].sum(axis=1)
  strength = np.sqrt(nearest.min() / ((n - 2 * m - 1) * d)) + np.max(
    np.linalg.norm(honest, axis=1)
  ) / np.sqrt(d)
  bound, attacked = strength, rows.copy()
  while True:
    attacked[byzantine] = -strength * signs
    if byzantine[krum_index(attacked, f)] or strength <= threshold:
      return bound, strength, signs
    strength /= 2


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('m', [2, 4])
def test_fang_krum_is_selected(m, seed):
  tree, byzantine = stack(seed=seed), mask(11, m, seed)
  _, strength, signs = fang_strength(flat(tree), byzantine, f=m)
  attacked = compiled('fang_krum', tree, byzantine, f=m)
  rows = flat(attacked)[byzantine]
  np.testing.assert_allclose(
    rows, np.tile(-strength * signs, (m, 1)), rtol=1e-5
  )
  if strength > 1e-5:
    krum = jax.jit(functools.partial(lca.krum, f=m))
    np.testing.assert_array_equal(flat_update(krum(attacked)), rows[0])


def test_fang_krum_finds_a_strength_below_the_bound():
  """The cases above are no proof of a search if none of them searched."""
  found = []
  for seed in range(5):
    rows, byzantine = flat(stack(seed=seed)), mask(11, 4, seed)
    bound, strength, _ = fang_strength(rows, byzantine, f=4)
    found.append(1e-3 < strength < bound)
  assert any(found)


def test_fang_krum_ends_at_its_threshold():
  tree, byzantine = stack(), mask(11, 1)
  rows = flat(tree)
  bound, strength, _ = fang_strength(rows, byzantine, f=1, threshold=1e-5)
  assert strength <= 1e-5  # one attacker of 11 has nobody near it
  out = sent('fang_krum', tree, byzantine, f=1)
  np.testing.assert_allclose(np.abs(out), strength, rtol=1e-5)
  out = sent('fang_krum', tree, byzantine, f=1, threshold=10 * bound)
  np.testing.assert_allclose(np.abs(out), bound, rtol=1e-5)


def test_fang_krum_needs_what_krum_needs():
  with pytest.raises(ValueError, match='n=11, f=5'):
    plain('fang_krum', stack(), mask(11, 3), f=5)


def test_fang_trimmed_mean_draws_beyond_the_extremes():
  rng = np.random.default_rng(0)
  # Per coordinate around -3, 0 and 3: all signs of means and of extremes.
  rows = rng.normal(size=(9, 9000)) + np.repeat([-3.0, 0.0, 3.0], 3000)
  rows = rows.astype(np.float32)
  byzantine = mask(9, 2)
  honest = rows[~byzantine].astype(np.float64)
  mean, low, high = honest.mean(axis=0), honest.min(axis=0), honest.max(axis=0)
  out = sent('fang_trimmed_mean', rows, byzantine)
  falling = mean < 0
  extreme = np.where(falling, high, low)
  end = np.where(
    falling,
    np.where(high > 0, 2 * high, high / 2),
    np.where(low < 0, 2 * low, low / 2),
  )
  parts = (out - extreme) / (end - extreme)
  assert np.all(np.where(falling, out >= high, out <= low))
  assert parts.min() > -1e-5 and parts.max() < 1 + 1e-5
  # Uniform: mean 1/2, variance 1/12, each within five of its deviations.
  assert abs(parts.mean() - 1 / 2) < 5 / np.sqrt(12 * parts.size)
  assert abs(parts.var() - 1 / 12) < 5 / np.sqrt(180 * parts.size)
  assert abs(np.corrcoef(parts)[0, 1]) < 5 / np.sqrt(9000)


@pytest.mark.parametrize('rule', ['median', 'trimmed_mean'])
def test_fang_trimmed_mean_holds_the_aggregate_back(rule):
  tree, byzantine = stack(), mask(11, 3)
  signs = np.sign(flat(tree)[~byzantine].mean(axis=0))
  rule = (
    lca.median if rule == 'median' else functools.partial(lca.trimmed_mean, f=3)
  )
  attacked = flat_update(rule(compiled('fang_trimmed_mean', tree, byzantine)))
  honest = jax.tree.map(lambda x: x[~byzantine], tree)
  calm = flat_update(lca.median(honest))
  assert np.mean(signs * attacked < signs * calm) > 0.9


# Optimised -----------------------------------------------------------------


def line(direction, honest, strength):
  mean = honest.mean(axis=0)
  if direction == 'fall_of_empires':
    return -strength * mean
  if direction == 'alie':
    return mean - strength * honest.std(axis=0)
  spread = np.max(np.linalg.norm(honest[:, None] - honest, axis=2))
  return mean - strength * spread * mean / np.linalg.norm(mean)


def as_tree(rows, tree):
  """Rows `[n, d]` in the shapes of a tree."""
  leaves, structure = jax.tree.flatten(tree)
  ends = np.cumsum([x[0].size for x in leaves])
  parts = np.split(rows.astype(np.float32), ends[:-1], axis=1)
  shaped = [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(structure, shaped)


RULES = {
  'median': jax.jit(lca.median),
  'layerwise_krum': jax.jit(functools.partial(lca.layerwise(lca.krum), f=3)),
}


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('direction', ['alie', 'fall_of_empires', 'min_max'])
def test_optimized_is_at_least_as_far_as_its_grid(rule, direction):
  aggregate = RULES[rule]
  for seed in range(2):
    tree, byzantine = stack(seed=seed), mask(11, 3, seed)
    rows = flat(tree)
    honest = rows[~byzantine]

    def distance(sent, rows=rows, byzantine=byzantine, tree=tree):
      attacked = rows.copy()
      attacked[byzantine] = sent
      update = flat_update(aggregate(as_tree(attacked, tree)))
      return np.linalg.norm(update - attacked[~byzantine].mean(axis=0))

    grid = 10.0 * 10 ** np.linspace(-3, 0, 8)
    far = [distance(line(direction, honest, s)) for s in grid]
    out = sent(
      'optimized',
      tree,
      byzantine,
      aggregate=aggregate,
      direction=direction,
      num_strengths=8,
    )
    assert distance(out[0]) >= max(far) * (1 - 1e-5)
    assert np.all(out == out[0])


def test_optimized_searches_again_between_the_best():
  """Krum's farthest row is the last one that it still selects."""
  tree, byzantine = stack(), mask(11, 4)
  rows, rule = flat(tree), functools.partial(lca.krum, f=4)
  honest = rows[~byzantine]
  mean, std = honest.mean(axis=0), honest.std(axis=0)

  def selected(strength):
    attacked = rows.copy()
    attacked[byzantine] = mean - strength * std
    return byzantine[krum_index(attacked, f=4)]

  fine = np.geomspace(0.01, 10, 5000)
  last = max(s for s in fine if selected(s))
  attacked = compiled(
    'optimized', tree, byzantine, aggregate=rule, num_strengths=16
  )
  out = flat(attacked)[byzantine][0]
  strength = np.linalg.norm(out - mean) / np.linalg.norm(std)
  # Neighbours in the second row: a 15th of two steps of 1000 ** (1 / 15).
  assert last / 1000 ** (2 / 15**2) * 0.999 < strength < last * 1.001


def test_against_the_mean_the_largest_strength_is_the_best():
  tree, byzantine = stack(), mask(11, 3)
  honest = flat(tree)[~byzantine]
  for direction in ('alie', 'fall_of_empires', 'min_max'):
    np.testing.assert_allclose(
      sent(
        'optimized',
        tree,
        byzantine,
        aggregate=lca.mean,
        direction=direction,
        max_strength=3.0,
      ),
      np.tile(line(direction, honest, 3.0), (3, 1)),
      rtol=1e-5,
      atol=1e-5,
    )


def test_an_aggregate_that_is_not_finite_is_infinitely_far():
  rows, byzantine = vectors(), mask(11, 3)
  honest = rows[~byzantine].astype(np.float64)
  limit = honest.mean() - 0.5  # some way down the line

  def breaks(updates):
    mean = lca.mean(updates)
    return jnp.where(jnp.mean(updates[byzantine]) < limit, jnp.nan, mean)

  out = sent('optimized', rows, byzantine, aggregate=breaks, num_strengths=9)
  grid = 10.0 * 10 ** np.linspace(-3, 0, 9)
  first = min(s for s in grid if line('alie', honest, s).mean() < limit)
  np.testing.assert_allclose(out[0], line('alie', honest, first), rtol=1e-4)


@pytest.mark.parametrize('batch_size', [3, 50])
def test_trying_several_strengths_at_once_changes_nothing(batch_size):
  leaf, byzantine = vectors(), mask(11, 3)
  np.testing.assert_allclose(
    sent('optimized', leaf, byzantine, num_strengths=16, batch_size=batch_size),
    sent('optimized', leaf, byzantine, num_strengths=16),
    rtol=1e-5,
  )


def test_optimized_needs_the_aggregate():
  with pytest.raises(TypeError, match='aggregate, got None'):
    plain('optimized', stack(), mask(11, 3), aggregate=None)


# Building ------------------------------------------------------------------


def test_options_may_be_written_as_text():
  leaf, byzantine = vectors(), mask(11, 3)
  for name, text, options in [
    ('constant', {'value': '1e-1'}, {'value': 0.1}),
    ('sign_flip', {'scale': '3'}, {'scale': 3.0}),
    ('mimic', {'target': '2'}, {'target': 2}),
  ]:
    attack = attacks.make({'name': name, **text})
    np.testing.assert_array_equal(
      attack.on_updates(leaf, byzantine=byzantine, key=KEY, aggregate=RULE),
      plain(name, leaf, byzantine, **options),
    )


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'gaussian', 'sigma': -1.0}, r'sigma .*\[0, inf\], got -1'),
    ({'name': 'gaussian', 'sigma': None}, 'sigma must be a number, got None'),
    ({'name': 'gaussian', 'sigma': 1, 'layers': '('}, r'layers .* got .\('),
    ({'name': 'fall_of_empires', 'epsilon': 'nan'}, 'epsilon .* got nan'),
    ({'name': 'sign_flip', 'scale': -2}, 'scale .* got -2'),
    ({'name': 'alie', 'z': 'large'}, "z must be a number, got 'large'"),
    ({'name': 'mimic', 'target': -1}, 'target must be at least 0, got -1'),
    ({'name': 'mimic', 'target': 1.5}, 'target must be an integer, got 1.5'),
    ({'name': 'min_max', 'direction': 'up'}, "direction .*'std'.* got 'up'"),
    ({'name': 'min_sum', 'direction': 'up'}, "direction .*'std'.* got 'up'"),
    ({'name': 'fang_krum', 'f': -1}, 'f must be at least 0, got -1'),
    ({'name': 'fang_krum', 'f': 1, 'threshold': 0}, 'threshold must be above'),
    ({'name': 'fang_trimmed_mean', 'b': 0.5}, 'b must .* got 0.5'),
    ({'name': 'constant', 'value': 'inf'}, 'value must be a finite'),
    ({'name': 'non_finite', 'value': '0'}, "value .*'nan'.* got '0'"),
    ({'name': 'optimized', 'direction': 'std'}, "direction .* got 'std'"),
    ({'name': 'optimized', 'num_strengths': 1}, 'num_strengths must be at lea'),
    ({'name': 'optimized', 'max_strength': 0}, 'max_strength must be above 0'),
    ({'name': 'optimized', 'batch_size': 0}, 'batch_size must be at least 1'),
  ],
)
def test_impossible_options(config, message):
  with pytest.raises(ValueError, match=message):
    attacks.make(config)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'gaussian'}, r"gaussian needs \['sigma'\]"),
    ({'name': 'fang_krum'}, r"fang_krum needs \['f'\]"),
    ({'name': 'zero', 'value': 1, 'scale': 2}, r"no \['scale', 'value'\]"),
    ({'name': 'alie', 'aggregate': lca.mean}, r"no \['aggregate'\]"),
    ({'name': 'label_flipping', 'epsilon': 1}, 'epsilon'),
  ],
)
def test_keys_that_an_attack_lacks_or_does_not_take(config, message):
  with pytest.raises(TypeError, match=message):
    attacks.make(config)


@pytest.mark.parametrize(
  'wrong', [np.zeros(4, bool), np.arange(11), np.zeros((11, 1), bool)]
)
def test_byzantine_is_a_mask_of_the_clients(wrong):
  with pytest.raises(ValueError, match=r'byzantine must be .* n=11, got'):
    plain('zero', stack(), wrong)


@pytest.mark.parametrize('name', ['gaussian', 'fang_trimmed_mean'])
def test_what_is_drawn_needs_a_key(name):
  with pytest.raises(TypeError, match=f'{name} .* needs a key'):
    plain(name, stack(), mask(11, 3), key=None)


def test_a_function_of_ones_own_is_an_attack():
  def shout(updates, *, byzantine, volume):
    return lca.geometry.scale(updates, jnp.where(byzantine, volume, 1.0))

  attack = attacks.from_function(shout, volume=5.0)
  out = attack.on_updates(
    jnp.ones(4), byzantine=BYZANTINE, key=KEY, aggregate=lca.mean
  )
  np.testing.assert_array_equal(out, np.where(BYZANTINE, 5, 1))
