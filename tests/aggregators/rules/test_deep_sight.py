"""Tests of DeepSight: its parts, its oracle, and the contract of all rules.

It is not among the cases of `tests/cases.py`, because it needs a model: updates
with an output layer, and a function of them. So the contract stands here.
"""

import functools
import importlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# The rule hides its module's name in the package.
module = importlib.import_module('lca.aggregators.rules.deep_sight')
KEY = jax.random.key(5)
D, H, K = 4, 6, 5  # inputs, hidden units, classes
# Small numbers of inputs and clients, so that clusters form.
OPTIONS = {'num_inputs': 30, 'num_seeds': 2, 'min_cluster_size': 3}
WIDTH = D * H + H + H * K + K


def tree_of(rows):
  """Returns rows `[..., WIDTH]` as a tree of two layers."""
  lead, at, tree = rows.shape[:-1], 0, {}
  for name, shapes in {
    'Dense_0': {'bias': (H,), 'kernel': (D, H)},
    'Dense_1': {'bias': (K,), 'kernel': (H, K)},
  }.items():
    tree[name] = {}
    for leaf, shape in shapes.items():
      size = int(np.prod(shape))
      tree[name][leaf] = rows[..., at : at + size].reshape(*lead, *shape)
      at += size
  return {'params': tree}


def logits(tree, x, lib=jnp):
  first, last = tree['params']['Dense_0'], tree['params']['Dense_1']
  hidden = lib.maximum(x @ first['kernel'] + first['bias'], 0)
  return hidden @ last['kernel'] + last['bias']


PREDICT = lca.Predictor(
  logits, jax.ShapeDtypeStruct((D,), jnp.float32), (-1.0, 2.0)
)


@functools.cache
def jitted(**options):
  rule = functools.partial(lca.explain(lca.deep_sight), **OPTIONS | options)
  return jax.jit(functools.partial(rule, predict=PREDICT))


def explain(rows, w, key=KEY, **options):
  """Returns the update as one row, and the info."""
  out, info = jitted(**options)(tree_of(rows), params=tree_of(w), key=key)
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(out)]), info


def draw(seed, n):
  """Returns updates `[n, WIDTH]` and parameters.

  Clients have labels of three kinds: all, some, and a single one. Some rows are
  long, are NaN or are zero.
  """
  rng = np.random.default_rng([seed, n])
  w = rng.normal(size=WIDTH) / 2
  kinds = np.array([[1, 1, 1, 1, 1], [1, 0.8, 0.1, 0, 0], [0, 0, 0, 0, 1]])
  kind = rng.integers(0, 3 if seed % 2 else 2, n)
  of_class = kinds[kind] * (rng.choice([-1, 1], size=K) * 0.2)
  x = 0.02 * (1 + 2 * rng.random((n, 1))) * rng.normal(size=(n, WIDTH))
  last = WIDTH - H * K - K
  x[:, last : last + K] += of_class
  x[:, last + K :] += np.tile(of_class, H)
  if seed % 3 == 0:
    x[rng.integers(n)] *= 100
  if seed % 4 == 0:
    x[rng.integers(n)] = np.nan
  if seed % 5 == 0:
    x[rng.integers(n)] = 0
  return x.astype(np.float32), w.astype(np.float32)


def probabilities(w, x):
  z = logits(tree_of(w.astype(float)), x.astype(float), np)
  z = np.exp(z - np.max(z, axis=-1, keepdims=True))
  return z / np.sum(z, axis=-1, keepdims=True)


def differences(rows, w, key, num_inputs, num_seeds):
  """Returns the oracle's DDifs, of the inputs that the rule draws."""
  found = []
  for seed_key in jax.random.split(key, num_seeds):
    x = PREDICT.random_inputs(jax.random.fold_in(seed_key, 0), num_inputs)
    after = np.stack([probabilities(w + row, np.asarray(x)) for row in rows])
    before = probabilities(w, np.asarray(x))
    found.append(oracles.division_differences(before, after))
  return np.stack(found)


def check(rows, w, out, info, key=KEY, **options):
  """Compares with the oracle."""
  options = OPTIONS | options
  counts = [options.pop(name) for name in ('num_inputs', 'num_seeds')]
  options['single'] = options.pop('allow_single_cluster', False)
  rows = rows.astype(float)
  layer = tree_of(rows)['params']['Dense_1']
  with np.errstate(invalid='ignore', over='ignore'):
    ratios = differences(rows, w, key, *counts)
    want = oracles.deep_sight_accepted(
      rows, layer['kernel'], layer['bias'], ratios, **options
    )
  rejected = oracles.rejected(rows)
  np.testing.assert_array_equal(info['rejected'], rejected)
  assert np.flatnonzero(info['selected']).tolist() == want
  weights = oracles.equal_weights(len(rows), want) * oracles.clip_factors(rows)
  np.testing.assert_allclose(info['weights'], weights, rtol=1e-5, atol=1e-7)
  update = (
    oracles.weighted_sum(rows, weights) if want else np.full(WIDTH, np.nan)
  )
  scale = np.max(np.abs(rows[want]), initial=0)
  np.testing.assert_allclose(out, update, rtol=1e-5, atol=2e-6 * scale)


# Against the oracle --------------------------------------------------------


@pytest.mark.parametrize(
  ('n', 'options'),
  [
    (4, {}),
    (11, {}),
    (12, {'min_samples': 1, 'accept_noise': False}),
    (25, {'min_cluster_size': 5, 'allow_single_cluster': True}),
  ],
)
def test_follows_the_oracle(n, options):
  left_out = 0
  for seed in range(8):
    rows, w = draw(seed, n)
    out, info = explain(rows, w, **options)
    check(rows, w, out, info, **options)
    left_out += np.sum(~info['selected'] & ~info['rejected'])
  assert left_out > 0 or n == 4


def test_suspicious_clients_of_a_cluster_by_hand():
  """The last three of nine clients move one class, and the others all."""
  rows = np.zeros((9, WIDTH), np.float32)
  last = WIDTH - H * K - K
  few, many = np.array([0, 0, 0, 0, 1.0]), np.array([1.0, 1, 1, 1, 0.9])
  for i in range(9):
    of_class = (few if i > 5 else many) * (1 + 0.001 * i)
    rows[i, last:] = np.tile(of_class, H + 1)
  _, info = explain(rows, np.zeros(WIDTH, np.float32), min_samples=1)
  assert np.flatnonzero(info['selected']).tolist() == [0, 1, 2, 3, 4, 5]


# The parts -----------------------------------------------------------------


def test_threshold_exceedings_by_hand():
  """Energies 4, 2, 1 and 0.1: squared and relative 1, 0.25, 0.06, 0.0006."""
  kernel = jnp.array([[[3.0, -1, 0.5, 0.05], [-0.5, 0, -0.5, 0]]])
  bias = jnp.array([[0.5, -1, 0, -0.05]])
  shares, exceedings = module.energy_shares(kernel, bias)
  want = np.array([16, 4, 1, 0.01])
  np.testing.assert_allclose(shares[0], want / np.sum(want), rtol=1e-6)
  assert exceedings.tolist() == [1]  # 0.25 is not more than 1 / 4
  shares, exceedings = module.energy_shares(0 * kernel, 0 * bias)
  assert exceedings.tolist() == [0] and not np.any(shares)
  many = jnp.full((1, 200), 0.09).at[0, 0].set(1)  # 0.0081 of the largest
  assert module.energy_shares(many[:, None] * 0, many)[1].tolist() == [1]
  shares, _ = module.energy_shares(1e18 * kernel, 1e18 * bias)
  np.testing.assert_allclose(shares[0], want / np.sum(want), rtol=1e-6)


@pytest.mark.parametrize('num_inputs', [14, 20, 21])
def test_inputs_come_in_batches(monkeypatch, num_inputs):
  monkeypatch.setattr(module, '_BATCH', 7)
  rows, w = draw(1, 3)
  found = module.division_differences(
    tree_of(rows), tree_of(w), PREDICT, num_inputs, KEY
  )
  keys = [jax.random.fold_in(KEY, i) for i in range(3)]
  x = np.concatenate([PREDICT.random_inputs(key, 7) for key in keys])
  x = x[:num_inputs]
  after = np.stack([probabilities(w + row, x) for row in rows])
  want = oracles.division_differences(probabilities(w, x), after)
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_random_inputs():
  x = np.asarray(PREDICT.random_inputs(KEY, 5000))
  assert x.shape == (5000, D) and x.min() > -1.001 and x.max() < 2
  np.testing.assert_allclose(x.mean(0), 0.5, atol=0.05)
  np.testing.assert_allclose(x.std(0), 3 / 12**0.5, atol=0.05)
  spec = jax.ShapeDtypeStruct((2, 3), jnp.uint8)
  x = np.asarray(lca.Predictor(logits, spec, (0, 255)).random_inputs(KEY, 4000))
  assert x.dtype == np.uint8 and x.shape == (4000, 2, 3)
  assert x.min() == 0 and x.max() == 255
  np.testing.assert_allclose(x.mean(), 127.5, atol=3)


def test_the_output_layer():
  n, wide = 6, jnp.ones((6, H, K))
  one = {'kernel': wide, 'bias': jnp.ones((n, K))}
  norm = {'scale': jnp.ones((n, K)), 'bias': jnp.ones((n, K))}
  conv = {'kernel': jnp.ones((n, 3, 3, H, K)), 'bias': jnp.ones((n, K))}

  def find(tree, name=None):
    params = jax.tree.map(lambda x: x[0], tree)
    predict = lca.Predictor(
      lambda _, x: jnp.zeros((len(x), K)), PREDICT.input_spec
    )
    return module.output_changes(tree, params, predict, name)

  kernel, bias = find({'params': {'body': {'norm': norm, 'head': one}}})
  assert kernel.shape == wide.shape and bias.shape == (n, K)
  assert find(one)[0] is wide and find({'a': norm, 'b': conv})[0].ndim == 5
  two = {'params': {'conv': conv, 'head': one}, 'batch_stats': {'conv': norm}}
  assert find({'params': {'conv': conv, 'head': one}}, 'head')[0] is wide
  for tree, name, words in [
    ({'params': {'conv': conv, 'head': one}}, None, "'conv', 'head'.*None"),
    ({'params': {'head': one}}, 'tail', "'head'.*'tail'"),
    ({'head': {'kernel': wide}}, None, r'kernel \[\.\.\., 5\] and a bias'),
    (two, 'conv', 'one output layer'),  # its statistics look like a bias
    (jnp.ones((n, 7)), None, 'one output layer'),
  ]:
    with pytest.raises(ValueError, match=f'(?s)deep_sight needs.*{words}'):
      find(tree, name)


# The contract --------------------------------------------------------------


def test_the_order_of_the_clients_does_not_matter():
  for seed in range(1, 5):
    rows, w = draw(seed, 11)
    out, info = explain(rows, w)
    order = np.random.default_rng(seed).permutation(11)
    moved, moved_info = explain(rows[order], w)
    np.testing.assert_allclose(moved, out, rtol=1e-5, atol=1e-6)
    selected = np.asarray(info['selected'])[order]
    np.testing.assert_array_equal(moved_info['selected'], selected)


@pytest.mark.parametrize('scale', [1, 1e-12, 1e12, 0])
def test_identical_updates_come_back(scale):
  rows, w = draw(1, 11)
  rows = np.repeat(np.float32(scale) * rows[:1], 11, axis=0)
  out, info = explain(rows, w)
  if scale == 0:  # nobody has exceedings, and all are suspicious
    assert np.all(np.isnan(out)) and not np.any(info['selected'])
  else:
    assert np.all(info['selected'])
    np.testing.assert_allclose(out, rows[0], rtol=1e-6)


@pytest.mark.parametrize('kind', [*pool.REJECTED, *pool.ACCEPTED, 'copies'])
def test_any_rows_are_survived(kind):
  rows, w = draw(1, 11)
  for count in (1, 4):
    bad = pool.at_random(11, count)
    changed = pool.with_rows(rows, bad, kind)
    out, info = explain(changed, w)
    assert np.all(np.isfinite(out))
    honest = np.setdiff1d(np.arange(11), bad)
    longest = np.max(np.linalg.norm(rows[honest], axis=1))
    assert np.linalg.norm(out) <= longest * (1 + 1e-5)
    rejected = np.asarray(info['rejected'])[bad]
    assert np.all(rejected == (kind in pool.REJECTED))
    if kind not in ('1e-40', '1e10'):  # flushed to zero; float64 has its logits
      check(changed, w, out, info)


def test_how_a_row_is_bad_makes_no_difference():
  rows, w = draw(1, 11)
  answers = [
    explain(pool.with_rows(rows, [2, 5, 8], kind), w) for kind in pool.REJECTED
  ]
  for answer in answers[1:]:
    jax.tree.map(np.testing.assert_array_equal, answer, answers[0])


def test_no_row_is_left():
  rows, w = draw(1, 11)
  out, info = explain(np.full_like(rows, np.nan), w)
  assert np.all(np.isnan(out)) and np.all(info['rejected'])
  assert not np.any(info['selected'])


def test_a_model_that_is_lost_leaves_the_other_clusters():
  """Without DDifs, angles and energies decide."""
  rows, w = draw(1, 11)
  out, info = explain(rows, np.full_like(w, np.nan))
  assert np.any(info['selected']) and not np.any(info['rejected'])
  assert np.all(np.isfinite(out))


@pytest.mark.parametrize('n', [1, 2])
def test_few_clients(n):
  rows, w = draw(1, n)
  out, info = explain(rows, w)
  check(rows, w, out, info)
  assert np.all(np.isfinite(out))


def test_keeps_structure_and_dtypes():
  rows, w = draw(1, 11)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree_of(rows))
  bias = jnp.asarray(rows[:, -H * K - K : -H * K])
  half['params']['Dense_1']['bias'] = bias  # a tree of two dtypes
  out, info = jitted()(half, params=tree_of(w), key=KEY)
  like = jax.tree.map(lambda x: (x.shape[1:], x.dtype), half)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), out) == like
  assert info['weights'].dtype == np.float32
  exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), half)
  want, _ = jitted()(exact, params=tree_of(w), key=KEY)
  close = functools.partial(np.testing.assert_allclose, rtol=2**-8, atol=1e-6)
  as_float = lambda tree: jax.tree.map(lambda x: np.asarray(x, 'f4'), tree)  # noqa: E731
  jax.tree.map(close, as_float(out), want)


def test_float64_is_followed_in_float64():
  with jax.enable_x64(True):
    rows, w = draw(1, 11)
    rows = rows.astype(np.float64)
    rows[4] *= 1e30  # rejected in float32, but accepted in float64
    out, info = jitted()(tree_of(rows), params=tree_of(w), key=KEY)
    assert {x.dtype for x in jax.tree.leaves(out)} == {np.dtype(np.float64)}
    assert not np.any(info['rejected'])
    assert max(np.max(np.abs(x)) for x in jax.tree.leaves(out)) < 10


def test_vmap_is_a_loop():
  draws = [draw(seed, 11) for seed in (1, 2, 4)]
  rows, w = map(np.stack, zip(*draws, strict=True))

  def rule(rows, w):
    return jitted()(tree_of(rows), params=tree_of(w), key=KEY)

  _, infos = jax.jit(jax.vmap(rule))(rows, w)
  for i, (each, w) in enumerate(draws):
    _, info = explain(each, w)
    np.testing.assert_array_equal(infos['selected'][i], info['selected'])


def test_exports_for_every_platform():
  rows, w = draw(1, 11)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  shapes, params, key = jax.tree.map(like, (tree_of(rows), tree_of(w), KEY))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(jitted(), platforms=platforms)(
    shapes, params=params, key=key
  )
  assert exported.platforms == platforms


def test_differentiates_with_the_weights_held_fixed():
  rows, w = draw(1, 11)
  _, info = explain(rows, w)
  cotangent = np.cos(np.arange(WIDTH))

  def product(rows, w):
    out, _ = jitted()(tree_of(rows), params=tree_of(w), key=KEY)
    wanted = tree_of(cotangent)
    parts = jax.tree.map(lambda x, c: jnp.vdot(x, c), out, wanted)
    return sum(jax.tree.leaves(parts))

  got, of_params = jax.jit(jax.grad(product, argnums=(0, 1)))(rows, w)
  want = np.asarray(info['weights'])[:, None] * cotangent
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert not np.any(of_params)


# Arguments and forms -------------------------------------------------------


def test_what_deep_sight_needs():
  rows, w = draw(1, 6)
  given = {'params': tree_of(w), 'predict': PREDICT, 'key': KEY}
  rule = functools.partial(lca.deep_sight, tree_of(rows))
  for missing in given:
    lacking = {k: x for k, x in given.items() if k != missing}
    with pytest.raises(TypeError, match=missing):
      rule(**lacking)
    with pytest.raises(TypeError, match=f'deep_sight needs {missing} from the'):
      lca.stateless(lca.deep_sight).update(tree_of(rows), (), **lacking)
  for option in ('num_inputs', 'num_seeds', 'min_samples'):
    with pytest.raises(ValueError, match=f'deep_sight needs .*{option}=0'):
      rule(**given, **{option: 0})
  with pytest.raises(ValueError, match='min_cluster_size=1,'):
    rule(**given, min_cluster_size=1)
  with pytest.raises(ValueError, match=r'integer num_inputs, got .*=0\.5'):
    rule(**given, num_inputs=0.5)
  with pytest.raises(ValueError, match='params must be shaped'):
    rule(**given | {'params': tree_of(np.ones((2, WIDTH)))})
  for bad in ({}, {'a': jnp.zeros((11, 2)), 'b': jnp.zeros(())}):
    with pytest.raises(ValueError, match='stacked'):
      lca.deep_sight(bad, **given | {'params': bad})


@pytest.mark.parametrize(
  'rule',
  [
    lca.deep_sight,
    functools.partial(lca.deep_sight, num_inputs=5),
    lca.chain(lca.static_clip, lca.deep_sight),
    lca.noisy(lca.deep_sight, sigma=1.0),
    lca.stateless(lca.deep_sight, num_inputs=5),
  ],
  ids=['rule', 'partial', 'chain', 'noisy', 'stateless'],
)
def test_there_is_no_layerwise_form(rule):
  with pytest.raises(
    TypeError, match='layers of deep_sight, which takes predict'
  ):
    lca.layerwise(rule)


def test_no_layers_in_a_config():
  with pytest.raises(TypeError, match='deep_sight, which takes predict'):
    lca.make_aggregator({'name': 'deep_sight', 'scope': 'leaf'})


def test_after_a_clip():
  rows, w = draw(1, 11)
  rule = lca.chain(lca.static_clip, lca.deep_sight)
  out = jax.jit(functools.partial(rule, threshold=0.1, **OPTIONS))(
    tree_of(rows), params=tree_of(w), predict=PREDICT, key=KEY
  )
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  want, _ = explain(rows * np.minimum(1, np.float32(0.1) / norms), w)
  got = np.concatenate([np.ravel(x) for x in jax.tree.leaves(out)])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
