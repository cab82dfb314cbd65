"""layerwise, cosine, the median-norm clip, and explain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import lca

RULES = {
  'krum': (lca.krum, {'f': 2}),
  'multi_krum': (lca.multi_krum, {'f': 2, 'm': 4}),
  'medoid': (lca.medoid, {}),
}
EQUAL = np.testing.assert_array_equal
# Clips are quotients of rounded norms, averages sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)

every_rule = pytest.mark.parametrize('name', RULES)


def same(one, other, compare=EQUAL):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(compare, one, other)


def stack(name, n=11, seed=0):
  return jax.tree.map(jnp.asarray, reference.stack(name, n, seed))


def uneven(name, n=12, seed=0):
  """Updates whose norms differ by leaf and by client, so that clips bite."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (
      x * rng.uniform(0.2, 5, (n,) + (1,) * (x.ndim - 1)).astype(np.float32)
    ),
    reference.stack(name, n, seed),
  )


def explain(form, tree, **hyper):
  return jax.jit(functools.partial(lca.explain(form), **hyper))(tree)


def call(form, tree, **hyper):
  return jax.jit(functools.partial(form, **hyper))(tree)


# layerwise -----------------------------------------------------------------


@every_rule
def test_layerwise_of_one_leaf_is_the_rule(name):
  rule, hyper = RULES[name]
  x = stack('leaf')
  for form, by in [(rule, 'leaf'), (lca.cosine(rule), 'module')]:
    got, info = explain(lca.layerwise(form, by=by), x, **hyper)
    want, flat = explain(form, x, **hyper)
    CLOSE(got, want)
    EQUAL(info['selected'], flat['selected'][None])


@every_rule
def test_layerwise_by_model_is_the_rule(name):
  rule, hyper = RULES[name]
  tree = stack('cnn')
  got = call(lca.layerwise(rule, by='model'), tree, **hyper)
  same(got, call(rule, tree, **hyper), CLOSE)


@every_rule
def test_layerwise_is_the_rule_on_every_leaf(name):
  rule, hyper = RULES[name]
  tree = stack('pair')
  got = call(lca.layerwise(rule), tree, **hyper)
  want = {key: call(rule, leaf, **hyper) for key, leaf in tree.items()}
  same(got, want, CLOSE)


def test_layers_disagree_in_the_pool():
  """So that layerwise differs from plain in the tests above."""
  _, info = explain(lca.layerwise(lca.krum), stack('cnn'), f=2)
  chosen = np.argmax(info['selected'], axis=1)
  assert len(set(chosen.tolist())) > 2


@pytest.mark.parametrize(
  ('by', 'layers'),
  [
    ('model', 1),
    ('leaf', 8),
    ('module', 3),
    ('block', 2),
    (lambda path: path[-1], 5),
    (lambda path: path[0], 2),
    (lambda path: len(path), 2),
  ],
  ids=['model', 'leaf', 'module', 'block', 'name', 'collection', 'depth'],
)
def test_scopes(by, layers):
  tree = stack('stats')
  groups = reference.groups(reference.stack('stats', 11), by)
  assert len(groups) == layers
  got, info = explain(lca.layerwise(lca.krum, by=by), tree, f=2)
  leaves, outs = jax.tree.leaves(tree), jax.tree.leaves(got)
  for layer, positions in enumerate(groups):
    own = [leaves[p] for p in positions]
    want, one = explain(lca.krum, own, f=2)
    EQUAL(info['selected'][layer], one['selected'])
    same([outs[p] for p in positions], want)


def test_parameters_and_statistics_of_a_module_fall_together():
  tree = stack('stats')
  for by in ('module', 'block'):
    out = call(lca.layerwise(lca.krum, by=by), tree, f=2)

    def client(path, out=out):
      leaf, stacked = out, tree
      for key in path:
        leaf, stacked = leaf[key], stacked[key]
      return int(np.flatnonzero(np.all(stacked == leaf, axis=1))[0])

    scale = client(['params', 'block', 'norm', 'scale'])
    assert client(['params', 'block', 'norm', 'bias']) == scale
    for key in ('mean', 'var'):
      assert client(['batch_stats', 'block', 'norm', key]) == scale


def test_a_path_is_a_tuple_of_strings():
  seen = []

  def by(path):
    seen.append(path)
    return path

  tree = {'a': {'b': jnp.zeros((5, 1))}, 'c': [jnp.zeros((5, 1))]}
  lca.layerwise(lca.medoid, by=by)(tree)
  assert {('a', 'b'), ('c', '0')} == set(seen)


def test_without_collections_the_first_key_is_the_block():
  tree = {
    'a': {'x': {'k': (3,), 'b': (3,)}, 'y': {'k': (3,)}},
    'b': {'x': {'k': (3,)}},
  }
  tree = jax.tree.map(
    lambda shape: jnp.zeros((5, *shape)),
    tree,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  for by, layers in [('block', 2), ('module', 3), ('leaf', 4)]:
    _, info = explain(lca.layerwise(lca.medoid, by=by), tree)
    assert info['selected'].shape == (layers, 5)


@pytest.mark.parametrize('by', ['leaf', 'module'])
def test_layerwise_takes_a_plain_function(by):
  def krum(updates, *, f):
    return lca.krum(updates, f=f)

  tree = stack('pair')
  same(
    call(lca.layerwise(krum, by=by), tree, f=2),
    call(lca.layerwise(lca.krum, by=by), tree, f=2),
  )


def test_layerwise_of_a_new_gram_rule():
  @lca.gram_rule
  def smallest(gram, *, rank=0):
    norms = lca.geometry.norms(gram)
    winner = jax.nn.one_hot(jnp.argsort(norms)[rank], len(gram))
    return lca.Verdict(winner)

  tree = stack('pair')
  out, info = explain(lca.layerwise(smallest), tree, rank=1)
  for key, leaf in reference.stack('pair', 11).items():
    norms = np.linalg.norm(leaf.reshape(11, -1), axis=1)
    EQUAL(out[key], leaf[np.argsort(norms)[1]])
  assert 'scores' not in info  # what does not apply is absent
  assert info['weights'].shape == (2, 11)


def test_layerwise_rejects_layer_by_layer():
  tree = stack('pair')
  bad = tree | {'bias': tree['bias'].at[3].set(jnp.nan)}
  out, info = explain(lca.layerwise(lca.krum), bad, f=2)
  want = call(lca.layerwise(lca.krum), tree, f=2)
  EQUAL(out['kernel'], want['kernel'])  # unmoved by the other layer's NaN
  assert np.argwhere(info['rejected']).tolist() == [[0, 3]]


def test_layerwise_refuses():
  with pytest.raises(TypeError, match='layerwise'):
    lca.layerwise(lca.layerwise(lca.krum))
  with pytest.raises(TypeError, match='needs a rule, got int'):
    lca.layerwise(3)
  with pytest.raises(ValueError, match='tensor'):
    lca.layerwise(lca.krum, by='tensor')


# cosine --------------------------------------------------------------------


@every_rule
def test_cosine_is_the_cosine_distance_on_clipped_updates(name):
  rule, hyper = RULES[name]
  tree = uneven('pair')
  for median in ('interpolated', 'lower'):
    clipped = lca.clip_to_median_norm(tree, median=median)
    form = lca.cosine(rule, median=median)
    want = call(rule, clipped, distance='cosine', **hyper)
    same(call(form, tree, **hyper), want, CLOSE)
    got = call(lca.layerwise(form), tree, **hyper)
    clipped = lca.layerwise(lca.clip_to_median_norm)(tree, median=median)
    want = call(lca.layerwise(rule), clipped, distance='cosine', **hyper)
    same(got, want, CLOSE)


@every_rule
@pytest.mark.parametrize('by', ['model', 'leaf', 'module'])
@pytest.mark.parametrize(
  'options',
  [
    {'clip': None},
    {'median': 'interpolated'},
    {'median': 'lower'},
    {'clip_by': 'leaf', 'median': 'interpolated'},
    {'clip_by': 'leaf', 'median': 'lower'},
  ],
  ids=['noclip', 'interpolated', 'lower', 'by leaf', 'by leaf, lower'],
)
def test_clips_follow_the_oracle(name, by, options):
  rule, hyper = RULES[name]
  tree = uneven('pair')
  tree['bias'][5] = np.nan  # an odd number is left in one layer
  tree['kernel'][7] *= 1e3
  form = jax.jit(
    functools.partial(lca.layerwise(lca.cosine(rule, **options), by), **hyper)
  )
  want = reference.aggregate(
    name,
    tree,
    hyper,
    kind='cosine',
    by=by,
    clip=options.get('clip', 'median'),
    clip_by=options.get('clip_by', 'scope'),
    median_kind=options.get('median', 'interpolated'),
  )
  same(form(tree), want, CLOSE)


def test_the_options_of_the_clip_differ():
  """So that none of them passes for another above."""
  tree = uneven('pair')
  forms = [
    {'clip': None},
    {},
    {'median': 'lower'},
    {'clip_by': 'leaf'},
    {'clip_by': 'leaf', 'median': 'lower'},
  ]
  answers = [
    call(lca.cosine(lca.multi_krum, **options), tree, f=2, m=4)
    for options in forms
  ]
  for i, one in enumerate(answers):
    for other in answers[:i]:
      assert not np.allclose(one['kernel'], other['kernel'], rtol=1e-4)


@every_rule
def test_clip_by_leaf_is_clip_by_scope_layer_by_layer(name):
  rule, hyper = RULES[name]
  tree = jax.tree.map(jnp.asarray, uneven('pair'))
  same(
    call(lca.layerwise(lca.cosine(rule, clip_by='leaf')), tree, **hyper),
    call(lca.layerwise(lca.cosine(rule)), tree, **hyper),
    CLOSE,
  )


def test_clip_by_leaf_leaves_out_the_rows_that_the_scope_rejects():
  kernel = np.ones((5, 2), np.float32) * [[1], [2], [3], [4], [np.nan]]
  bias = np.array([[1.0], [2], [3], [4], [100]])
  tree = {'bias': jnp.asarray(bias), 'kernel': jnp.asarray(kernel)}
  rule = lca.gram_rule(lambda gram, *, distance: lca.Verdict(jnp.eye(5)[3]))
  out = lca.cosine(rule, clip_by='leaf')(tree)
  CLOSE(out['bias'], [2.5])  # the median of 1, 2, 3, 4; with the 100 it is 3
  CLOSE(out['kernel'], [2.5, 2.5])


@every_rule
def test_squared_distances_of_unit_vectors_choose_as_the_cosine_does(name):
  rule, hyper = RULES[name]
  for seed in range(3):
    x = reference.stack('leaf', 11, seed).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = jnp.asarray(x, jnp.float32)
    _, euclidean = explain(rule, x, power=2, **hyper)
    _, cosine = explain(rule, x, distance='cosine', **hyper)
    EQUAL(euclidean['selected'], cosine['selected'])


@every_rule
def test_lengths_do_not_change_who_is_selected(name):
  rule, hyper = RULES[name]
  x = stack('leaf')
  scales = np.random.default_rng(0).uniform(0.01, 100, (11, 1))
  _, info = explain(lca.cosine(rule), x, **hyper)
  _, scaled = explain(
    lca.cosine(rule), x * jnp.asarray(scales, jnp.float32), **hyper
  )
  EQUAL(info['selected'], scaled['selected'])


@every_rule
def test_a_silent_client_is_not_central(name):
  """With cos = 0 for a zero row, it would be the nearest to all others."""
  rule, hyper = RULES[name]
  x = jnp.concatenate([jnp.zeros((1, 11)), jnp.eye(11)[:10]])
  _, info = explain(lca.cosine(rule), x, **hyper)
  assert not info['selected'][0]
  assert np.all(np.isfinite(info['scores']))


@every_rule
def test_cosine_near_overflow(name):
  rule, hyper = RULES[name]
  x = reference.stack('leaf', 11)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  small, info = explain(lca.cosine(rule), jnp.asarray(x), **hyper)
  big, other = explain(
    lca.cosine(rule), jnp.asarray(x * np.float32(1e18)), **hyper
  )
  EQUAL(info['selected'], other['selected'])
  assert not np.any(other['rejected'])
  CLOSE(big / 1e18, small)


def test_cosine_refuses():
  with pytest.raises(TypeError, match=r'layerwise\(cosine\(krum\)\)'):
    lca.cosine(lca.layerwise(lca.krum))
  with pytest.raises(TypeError, match=r'chain\(nnm, krum\).*steps'):
    lca.cosine(lca.chain(lca.nnm, lca.krum))
  with pytest.raises(TypeError, match=r'chain\(nnm, bulyan\).*steps'):
    lca.cosine(lca.chain(lca.nnm, lca.bulyan))
  with pytest.raises(TypeError, match='mean'):
    lca.cosine(lca.mean)
  with pytest.raises(TypeError, match='clip_to_median_norm'):
    lca.cosine(lca.clip_to_median_norm)
  with pytest.raises(TypeError, match='cosine'):
    lca.cosine(lca.cosine(lca.krum))
  for option in ('clip', 'clip_by', 'median'):
    with pytest.raises(ValueError, match=f'{option}.*mean'):
      lca.cosine(lca.krum, **{option: 'mean'})
  with pytest.raises((TypeError, ValueError), match='power'):
    lca.cosine(lca.krum)(jnp.zeros((11, 3)), f=2, power=2)


# clip_to_median_norm -------------------------------------------------------


@pytest.mark.parametrize('median', ['interpolated', 'lower'])
@pytest.mark.parametrize('n', [11, 12])
def test_clip_to_median_norm_follows_the_oracle(n, median):
  tree = uneven('pair', n)
  tree['bias'][4, 2] = np.inf
  tree['kernel'][6] = 0
  got = lca.clip_to_median_norm(tree, median=median)
  same(got, reference.clip_to_median_norm(tree, median), CLOSE)
  assert np.all(np.isnan(got['kernel'][4]))  # the whole row, not one leaf


@pytest.mark.parametrize('median', ['interpolated', 'lower'])
def test_the_median_norm_lies_among_the_honest(median):
  """However a minority sends: long, short, not at all, or rejected."""
  lengths = jax.jit(lambda x: lca.geometry.median_norm(lca.gram(x), median))
  for n, f in ((4, 1), (5, 2), (10, 4), (11, 5)):
    x = np.abs(reference.stack('leaf', n))
    honest = np.linalg.norm(x[f:], axis=1)
    for sent in (0, 1e-30, 1.0, 1e10, 1e18, np.nan, np.inf):
      for rows in range(f + 1):  # of them; the other liars are long
        x[:f], x[:rows] = 1e15, sent
        got = float(lengths(jnp.asarray(x)))
        assert honest.min() * (1 - 1e-5) <= got <= honest.max() * (1 + 1e-5)


def test_clip_to_median_norm_keeps_dtypes_and_short_rows():
  x = jnp.array([[1.0, 0], [0, 2], [3, 0], [0, 40]], jnp.bfloat16)
  out = lca.clip_to_median_norm(x)
  assert out.dtype == jnp.bfloat16
  assert out.tolist() == [[1, 0], [0, 2], [2.5, 0], [0, 2.5]]


def test_clip_to_median_norm_refuses():
  with pytest.raises(ValueError, match='upper'):
    lca.clip_to_median_norm(jnp.ones((3, 2)), median='upper')


# explain -------------------------------------------------------------------


@every_rule
def test_explain_says_what_was_decided(name):
  rule, hyper = RULES[name]
  tree = stack('pair')
  tree['bias'] = tree['bias'].at[2].set(jnp.inf)
  for form, shape in [(rule, (11,)), (lca.layerwise(rule), (2, 11))]:
    update, info = explain(form, tree, **hyper)
    assert set(info) == {'weights', 'scores', 'selected', 'rejected'}
    assert all(value.shape == shape for value in info.values())
    assert info['selected'].dtype == info['rejected'].dtype == bool
    CLOSE(np.sum(info['weights'], axis=-1), np.ones(shape[:-1]))
    EQUAL(info['weights'] > 0, info['selected'])
    assert np.sum(info['rejected']) == 1
    if shape == (11,):
      same(update, jax.jit(lca.mix)(tree, info['weights']))


def test_explain_tells_no_weights_of_what_is_not_mixed_by_them():
  x = stack('leaf')
  for rule in (lca.bulyan, lca.layerwise(lca.bulyan), lca.cosine(lca.bulyan)):
    _, info = explain(rule, x, f=2)
    assert set(info) == {'selected', 'rejected'}


def test_explain_tells_no_weights_of_leaves_with_clips_of_their_own():
  x = stack('pair')
  _, info = explain(lca.cosine(lca.multi_krum, clip_by='leaf'), x, f=2, m=3)
  assert set(info) == {'scores', 'selected', 'rejected'}


def test_explain_sees_through_what_is_bound():
  x = stack('pair')
  bound = functools.partial(lca.krum, f=2)
  for form in (lambda rule: rule, lca.layerwise):
    _, info = explain(form(bound), x)
    _, want = explain(form(lca.krum), x, f=2)
    assert set(info) == set(want)
    EQUAL(info['selected'], want['selected'])


def test_explain_of_a_chain_is_of_the_rows_that_came():
  x = stack('leaf')
  rule = lca.chain(lca.bucketing, lca.krum)
  update, info = lca.explain(rule)(x, f=1, key=jax.random.key(0))
  assert {k: v.shape for k, v in info.items()} == dict.fromkeys(
    ('weights', 'selected', 'rejected'), (11,)
  )
  CLOSE(update, lca.mix(x, info['weights']))


def test_explain_of_a_plain_function_has_nothing_to_say():
  x = stack('leaf')
  plain = lambda updates: jnp.sum(updates, axis=0)  # noqa: E731
  for form in (plain, lca.layerwise(plain)):
    update, info = explain(form, x)
    EQUAL(update, jax.jit(plain)(x))
    assert info == {}


def test_explain_of_an_aggregator():
  x = stack('leaf')
  aggregator = lca.stateless(lca.krum, f=2)
  update, state, info = lca.explain(aggregator)(x, aggregator.init(x[0]))
  want, told = lca.explain(lca.krum)(x, f=2)
  EQUAL(update, want)
  assert state == ()
  same(info, told)
  by_hand = lca.Aggregator(lambda params: 0, lambda u, s, **_: (u[0], s + 1))
  update, state, info = lca.explain(by_hand)(x, 4, key=None)
  assert state == 5 and info == {}


def test_names_say_the_composition():
  form = lca.layerwise(lca.cosine(lca.krum))
  assert repr(form) == 'layerwise(cosine(krum))'


def test_explain_needs_a_rule():
  with pytest.raises(TypeError, match='explain needs a rule, got int'):
    lca.explain(3)
