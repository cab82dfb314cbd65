"""Cases that tests of attacks share: labels, updates, the attacks' options."""

import functools

import jax
import numpy as np

import lca
from lca import attacks

KEY = jax.random.key(3)
IDS = np.array([7, 2, 9, 4])
BYZANTINE = np.array([True, False, True, False])


def labels(size=3000, num_classes=10):
  return np.random.default_rng(0).integers(
    0, num_classes, (len(IDS), size), dtype=np.int32
  )


# The updates ---------------------------------------------------------------


def stack(n=11, seed=0, dtype=np.float32):
  """Returns random updates with a common part, so that the mean is not near 0.

  The leaves are `[n, 3, 2, 5]` and `[n]`.
  """
  rng = np.random.default_rng([seed, n])

  def one(*shape):
    common = rng.normal(size=shape)
    return (common + rng.normal(size=(n, *shape))).astype(dtype)

  return {'params': {'Conv_0': {'kernel': one(3, 2, 5)}, 'scale': one()}}


def vectors(n=11, seed=0):
  """Returns stacked updates of a single leaf, `[n, 5]`."""
  return stack(n, seed)['params']['Conv_0']['kernel'][:, 0, 0]


def mask(n, m, seed=0):
  """Returns the `[n]` mask of m Byzantine clients at random positions."""
  chosen = np.zeros(n, bool)
  chosen[np.random.default_rng([seed, n, m]).permutation(n)[:m]] = True
  return chosen


def flat(tree):
  """Returns stacked updates as an array `[n, d]` in float64."""
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def flat_update(update):
  """Returns one update as an array `[d]` in float64."""
  return flat(jax.tree.map(lambda x: np.asarray(x)[None], update))[0]


RULE = functools.partial(lca.krum, f=2)

OPTIONS = {
  'alie': {},
  'constant': {'value': -3.0},
  'fall_of_empires': {'epsilon': 0.7},
  'fang_krum': {'f': 2},
  'fang_trimmed_mean': {},
  'free_rider': {'delta': False, 'noise': 0.5},
  'gaussian': {'sigma': 2.0, 'mu': 1.0},
  'layer_gaussian': {},
  'mimic': {},
  'min_max': {},
  'min_sum': {'direction': 'unit'},
  'non_finite': {'value': '-inf'},
  'optimized': {'aggregate': RULE, 'num_strengths': 4},
  'sign_flip': {'scale': 2.0},
  'white_box': {'aggregate': RULE, 'num_steps': 3},
  'zero': {},
}
# Attacks whose clients train on other examples.
ON_EXAMPLES = (
  *('badnets', 'blended', 'dba', 'edge_case', 'sinusoidal'),
  *('flip_complement', 'flip_next', 'flip_source', 'label_flipping'),
  *('a3fl', 'gradient_ascent'),
)


def plain(name, tree, byzantine, key=KEY, **options):
  """Calls an attack without jit, with its options from `OPTIONS`."""
  attack = getattr(attacks, name)
  return attack(tree, byzantine=byzantine, key=key, **(OPTIONS[name] | options))


def compiled(name, tree, byzantine, key=KEY, **options):
  """Calls an attack under jit, with its options from `OPTIONS`."""
  return _compiled(name, tuple(options.items()), tree, byzantine, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(name, options, tree, byzantine, key):
  return plain(name, tree, byzantine, key, **dict(options))


def sent(name, tree, byzantine, **options):
  """Returns the rows `[m, d]` that the Byzantine clients send."""
  return flat(compiled(name, tree, byzantine, **options))[byzantine]


# Fang et al. ---------------------------------------------------------------


def krum_index(rows, f):
  """Returns the index of the row that Krum selects from rows `[n, d]`."""
  between = np.sum((rows[:, None] - rows) ** 2, axis=2)
  np.fill_diagonal(between, np.inf)
  nearest = np.sort(between, axis=1)[:, : len(rows) - f - 2]
  return np.argmin(nearest.sum(axis=1))
