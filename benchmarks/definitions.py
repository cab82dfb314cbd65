"""Compares calls of this library with calls of other systems.

    python -m benchmarks.definitions [--output FILE]

Both calls of a row are Python expressions. They are evaluated as printed, on
the same random float32 updates, and their results are compared. If two results
that should be equal differ, or if two that should differ are equal, the row is
marked and the program fails. The row of a system that is not installed says so.
Systems without a package (Blades, LASA, FoolsGold, AlignIns, CRFL, FLDetector,
FLANDERS, the published code of the layerwise cosine paper) are used if their
source is on PYTHONPATH.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import logging
import platform
import textwrap
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import lca

SIZES, SEEDS, F = (11, 12), range(6), 2
KERNEL, BIAS = (30, 30), 100
TOLERANCE = 1e-5
RANDOM_TOLERANCE = 0.02

Names = dict[str, Any]


class Pair(NamedTuple):
  """Two expressions, and what is known about their results.

  Attributes:
    theirs: expression in the system's names, and in the fields of a trial.
    ours: expression in this library's names, and in the fields of a trial.
    remark: why the results differ, or what else a reader should know.
    equal: True if the results should be equal.
    random: True if the results are drawn, so that their distributions are
      compared.
  """

  theirs: str
  ours: str
  remark: str = ''
  equal: bool = True
  random: bool = False


class Trial(NamedTuple):
  """The data of one comparison, which expressions use by the fields' names.

  Attributes:
    x: updates of a round, `[n, d]`. The last f are Byzantine.
    y: updates of the next round, `[n, d]`.
    n: number of clients.
    f: number of Byzantine clients.
    tau: median norm of `x`.
    examples: numbers of examples that the clients report, `[n]`.
    key: random key.
  """

  x: np.ndarray
  y: np.ndarray
  n: int
  f: int
  tau: float
  examples: np.ndarray
  key: jax.Array


def make_trial(n: int, seed: int) -> Trial:
  """Makes clients that differ along a few directions; f push against the rest.

  With few directions the distances are unequal. Two rules that rank clients by
  different powers of the distance, or by different numbers of neighbours, then
  select different clients.
  """
  rng = np.random.default_rng([n, seed])
  d = int(np.prod(KERNEL)) + BIAS

  def updates():
    common = rng.normal(size=d)
    few = rng.normal(size=(n, 4)) @ rng.normal(size=(4, d))
    rows = common + few + 0.3 * rng.normal(size=(n, d))
    rows[n - F :] -= 2 * common
    return rows.astype(np.float32)

  x, y = updates(), updates()
  return Trial(
    x=x,
    y=y,
    n=n,
    f=F,
    tau=float(np.median(np.linalg.norm(x, axis=1))),
    examples=rng.integers(20, 200, n).astype(np.float32),
    key=jax.random.key(seed),
  )


def leaves_of(x: np.ndarray) -> list[np.ndarray]:
  """Returns updates as two leaves, a kernel and a bias."""
  kernel, bias = x[..., :-BIAS], x[..., -BIAS:]
  return [kernel.reshape(*x.shape[:-1], *KERNEL), bias]


def descent(trial: Trial, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns models and updates of rounds in which clients descend parabolas.

  The first 100 columns of `x` are the clients' optima. The curvatures differ
  from client to client and by coordinate, so that updates are not foretold
  exactly.
  """
  best = trial.x[:, :100]
  rates = 0.1 + 0.2 * np.abs(np.sin(trial.y[:, :100] / 9 + np.arange(100)))
  model, rounds = np.zeros(100, np.float32), []
  for _ in range(count):
    rows = rates * (best - model)
    rounds.append((model, rows))
    model = model + rows.mean(axis=0)
  return rounds


def models(trial: Trial) -> Names:
  """Returns the clients' models of three rounds, which have no entry below 0.

  The least entry of each is 0.
  """
  rounds = trial.x[:, :100], trial.y[:, :100], trial.x[:, 100:200]
  return {name: x - x.min() for name, x in zip('uvw', rounds, strict=True)}


def our_names(trial: Trial) -> Names:
  """Returns the names that the expressions of this library may use."""

  def scores(aggregator, rounds):
    state = aggregator.init(rounds[0][0])
    explain = jax.jit(lca.explain(aggregator))
    given = {'key': trial.key, 'client_ids': jnp.arange(trial.n)}
    for params, x in rounds:
      _, state, info = explain(x, state, params=params, **given)
    return info['scores']

  def rounds(aggregator, *updates):
    state = aggregator.init(trial.x[0])
    for x in updates:
      update, state = aggregator.update(x, state)
    return update

  return {
    'lca': lca,
    'jax': jax,
    'jnp': jnp,
    **trial._asdict(),
    'x': jnp.asarray(trial.x),
    'leaves': [jnp.asarray(leaf) for leaf in leaves_of(trial.x)],
    'once': lambda aggregator: rounds(aggregator, trial.x),
    'twice': lambda aggregator: rounds(aggregator, trial.x, trial.y),
    'descent': functools.partial(descent, trial),
    'scores': scores,
    'sent': lambda *models: [(jnp.zeros(100), x) for x in models],
    **models(trial),
  }


def _tensors(rows):
  """Returns a new tensor for each row: some systems write into their inputs."""
  import torch

  return [torch.tensor(row) for row in rows]


def byzfl_names(trial: Trial) -> Names:
  import byzfl

  order = np.asarray(jax.random.permutation(trial.key, trial.n))

  class Bucketing:
    """byzfl's bucketing with the permutation that the trial's key draws."""

    def __init__(self, s):
      self.run = byzfl.Bucketing(s)

    def __call__(self, x):
      with mock.patch('numpy.random.permutation', lambda rows: rows[order]):
        return self.run(x)

  def twice(aggregator):
    aggregator(trial.x)
    return aggregator(trial.y)

  np.random.seed(0)  # noqa: NPY002 (its CAF and SMEA draw from it)
  return {
    **vars(byzfl),
    **trial._asdict(),
    'x': trial.x.copy(),
    'Bucketing': Bucketing,
    'twice': twice,
  }


def byzpy_names(trial: Trial) -> Names:
  from byzpy import pre_aggregators
  from byzpy.aggregators import coordinate_wise, geometric_wise, norm_wise
  from byzpy.aggregators.coordinate_wise.mean_of_medians import MeanOfMedians
  from byzpy.aggregators.geometric_wise.monna import MoNNA
  from byzpy.aggregators.geometric_wise.smea import SMEA

  names = {}
  for module in (coordinate_wise, geometric_wise, norm_wise, pre_aggregators):
    names |= vars(module)
  return {
    **names,
    **trial._asdict(),
    'MeanOfMedians': MeanOfMedians,
    'MoNNA': MoNNA,
    'SMEA': SMEA,
    'rows': _tensors(trial.x),
    'order': np.asarray(jax.random.permutation(trial.key, trial.n)),
  }


def _clients(trial):
  """Returns two tensors, the kernel and the bias, for each client."""
  return [_tensors(leaves_of(row)) for row in trial.x]


def flexclash_names(trial: Trial) -> Names:
  from flexclash import pool

  functions = {
    name: getattr(function, '__wrapped__', function)
    for name, function in vars(pool).items()
  }
  return {**functions, **trial._asdict(), 'clients': _clients(trial)}


def flwr_names(trial: Trial) -> Names:
  from flwr.app import ArrayRecord, MetricRecord, RecordDict
  from flwr.server.strategy import aggregate
  from flwr.serverapp import strategy
  from flwr.supercore import differential_privacy

  logging.getLogger('flwr').setLevel(logging.WARNING)

  def reply(row, examples):
    content = RecordDict(
      {
        'arrays': ArrayRecord(leaves_of(row)),
        'metrics': MetricRecord({'num-examples': float(examples)}),
      }
    )
    return types.SimpleNamespace(content=content, has_error=lambda: False)

  def aggregated(strategy):
    replies = map(reply, trial.x, trial.examples)
    arrays, _ = strategy.aggregate_train(1, list(replies))
    return arrays.to_numpy_ndarrays()

  def clipped(row, threshold):
    arrays = leaves_of(row.copy())
    differential_privacy.clip_inputs_inplace(arrays, threshold)
    return arrays, 1

  results = [
    (leaves_of(row), count)
    for row, count in zip(trial.x, trial.examples, strict=True)
  ]
  return {
    **vars(strategy),
    **vars(aggregate),
    **trial._asdict(),
    'results': results,
    'aggregated': aggregated,
    'clipped': lambda threshold: [clipped(row, threshold) for row in trial.x],
  }


def blades_names(trial: Trial) -> Names:
  from fllib import aggregators

  def twice(aggregator):
    aggregator(_tensors(trial.x))
    return aggregator(_tensors(trial.y))

  return {
    **vars(aggregators),
    **trial._asdict(),
    'rows': _tensors(trial.x),
    'twice': twice,
  }


def paper_names(trial: Trial) -> Names:
  module = importlib.import_module('aggregators')
  functions = {
    name: getattr(function, '__wrapped__', function)
    for name, function in vars(module).items()
  }
  clip_by_norm = functions['clip_by_norm']

  def clipped(name, *args, **kwargs):
    decorated = clip_by_norm(getattr(module, name)).__wrapped__
    return decorated(_clients(trial), *args, **kwargs)

  return {
    **functions,
    **trial._asdict(),
    'clients': _clients(trial),
    'clipped': clipped,
  }


def lasa_names(trial: Trial) -> Names:
  import torch

  module = importlib.import_module('algorithms.defense.lasa')

  def lasa(**options):
    updates = [
      dict(zip(('kernel', 'bias'), client, strict=True))
      for client in _clients(trial)
    ]
    zeros = {k: torch.zeros_like(v) for k, v in updates[0].items()}
    args = types.SimpleNamespace(num_selected_users=trial.n, **options)
    with (
      # LASA moves its masks to a GPU, and was written for NumPy before 2.4.
      mock.patch.object(torch.Tensor, 'cuda', lambda tensor: tensor),
      mock.patch.object(module.np, 'argwhere', np.flatnonzero),
    ):
      return list(module.lasa(updates, zeros, args).values())

  return {**trial._asdict(), 'lasa': lasa}


def foolsgold_names(trial: Trial) -> Names:
  module = importlib.import_module('fg.foolsgold')
  return {
    **trial._asdict(),
    'foolsgold': module.foolsgold,
    'average': lambda weights: np.average(trial.x, axis=0, weights=weights),
  }


def alignins_names(trial: Trial) -> Names:
  module = importlib.import_module('aggregation')
  updates = dict(enumerate(_tensors(trial.x)))

  def made(**options):
    args = types.SimpleNamespace(
      aggr='', server_lr=1, num_corrupt=trial.f, **options
    )
    sizes = dict(enumerate(trial.examples.tolist()))
    return module.Aggregation(sizes, trial.x.shape[1], args)

  def align_ins(**options):
    # AlignIns was written for NumPy before 2.4.
    with mock.patch.object(module.np, 'argwhere', np.flatnonzero):
      (w,) = _tensors(trial.y[:1])
      return np.asarray(made(**options).agg_alignins(updates, w))

  def multi_metrics():
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its scores
      return np.asarray(made().agg_mul_metric(updates, None, None))

  return {
    **trial._asdict(),
    'align_ins': align_ins,
    'multi_metrics': multi_metrics,
  }


def crfl_names(trial: Trial) -> Names:
  import torch

  helper = importlib.import_module('utils.helper').Helper

  class Model(torch.nn.Module):
    def __init__(self, row):
      super().__init__()
      kernel, bias = map(torch.nn.Parameter, _tensors(leaves_of(row)))
      self.kernel, self.bias = kernel, bias

    def flat(self):
      return np.concatenate(
        [x.detach().numpy().ravel() for x in self.parameters()]
      )

  def crfl(norm):
    model = Model(trial.y[0])
    before = model.flat()
    server = types.SimpleNamespace(params={'num_models': trial.n})
    with torch.no_grad():
      rows = {i: Model(row).state_dict() for i, row in enumerate(trial.x)}
      helper.average_models_params(server, rows, list(rows), model)
    helper.clip_weight_norm(model, norm)
    return model.flat() - before

  return {**trial._asdict(), 'crfl': crfl}


def fl_detector_names(trial: Trial) -> Names:
  import mxnet

  script = importlib.import_module('train_mnist')
  rules = importlib.import_module('nd_aggregation')
  net = types.SimpleNamespace(collect_params=dict)  # without parameters

  def column(x):
    return mxnet.nd.array(x.reshape(-1, 1))

  def last_scores(rounds):
    models = [column(model) for model, _ in rounds]
    sent = [[column(-row) for row in rows] for _, rows in rounds]  # gradients
    means = [rules.simple_mean(None, rows, net, 0)[0] for rows in sent]
    # It runs on a GPU, and its measure of a detection needs 100 clients.
    with (
      mock.patch.object(mxnet, 'gpu', lambda index: mxnet.cpu()),
      mock.patch.object(rules, 'roc_auc_score', lambda *_: 0),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      moved, turned = (
        [b - a for a, b in itertools.pairwise(x)] for x in (models, means)
      )
      change = script.lbfgs(
        types.SimpleNamespace(gpu=0), moved[:-1], turned[:-1], moved[-1]
      )
      _, scores = rules.simple_mean(sent[-2], sent[-1], net, 0, 1, change)
    return scores

  return {
    **trial._asdict(),
    'descent': functools.partial(descent, trial),
    'last_scores': last_scores,
  }


def flanders_names(trial: Trial) -> Names:
  strategy = importlib.import_module('flanders.strategy')
  utils = importlib.import_module('flanders.utils')

  def scores(*models, **options):
    series = np.stack(models, axis=-1)
    # Its A and B start at random.
    with mock.patch('numpy.random.randn', np.eye):
      expected = strategy.mar(series[..., :-1], 1, **options)
    return utils.l2_norm(series[..., -1], expected[..., 0])

  return {**trial._asdict(), 'scores': scores, **models(trial)}


class System(NamedTuple):
  """Another system.

  Attributes:
    module: the system's module; if Python finds it, the system is installed.
    names: maps a trial to the names that the system's expressions may use.
    pairs: the calls to compare.
    package: name of the system's distribution; None if it has none.
  """

  module: str
  names: Callable[[Any], Names]
  pairs: list[Pair]
  package: str | None = None


ONE_NEIGHBOUR_MORE = (
  'theirs sums over n - f - 1 neighbours, ours over n - f - 2'
)
RANDOM_EIGENVECTOR = (
  'theirs takes one step of the power method from a random vector, and so '
  'draws its result; ours uses the eigenvector'
)
FIRST_SUBSET = (
  'of subsets that share their farthest pair theirs takes the first, ours by '
  'default the one of least mean distance'
)
SORTED_IN_PLACE = (
  'theirs sorts its distance matrix in place, and selects clients more than '
  'once'
)

BYZFL = [
  Pair('Average()(x)', 'lca.mean(x)'),
  Pair('Median()(x)', 'lca.median(x)'),
  Pair('TrMean(f)(x)', 'lca.trimmed_mean(x, f=f)'),
  Pair('Meamed(f)(x)', 'lca.meamed(x, f=f)'),
  Pair('Krum(f)(x)', 'lca.krum(x, f=f, num_neighbors=n-f-1)'),
  Pair('Krum(f)(x)', 'lca.krum(x, f=f)', ONE_NEIGHBOUR_MORE, equal=False),
  Pair('MultiKrum(f)(x)', 'lca.multi_krum(x, f=f, m=n-f, num_neighbors=n-f-1)'),
  Pair('MoNNA(f, idx=1)(x)', 'lca.monna(x, f=f, pivot=1)'),
  Pair('MDA(f)(x)', "lca.mda(x, f=f, ties='first')"),
  Pair('MDA(f)(x)', 'lca.mda(x, f=f)', FIRST_SUBSET, equal=False),
  Pair('SMEA(f)(x)', 'lca.smea(x, f=f)', RANDOM_EIGENVECTOR, equal=False),
  Pair('CAF(f)(x)', 'lca.caf(x, f=f)', RANDOM_EIGENVECTOR, equal=False),
  Pair(
    'GeometricMedian(nu=1e-6, T=200)(x)',
    'lca.geometric_median(x, num_iters=200, tol=0)',
    'both converged; the start does not matter',
  ),
  Pair(
    'GeometricMedian(nu=0.1, T=3)(x)',
    "lca.geometric_median(x, init='zero', num_iters=3, nu=0.1, tol=0)",
    'its defaults',
  ),
  Pair(
    'twice(CenteredClipping(L=3, tau=tau))',
    'twice(lca.centered_clip(threshold=tau, num_iters=3))',
    'second of two rounds',
  ),
  Pair('NNM(f)(x)', 'lca.nnm(x, f=f)'),
  Pair(
    'Bucketing(2)(x)',
    'lca.bucketing(x, key=key, bucket_size=2)',
    'given the same permutation',
  ),
  Pair('Clipping(tau)(x)', 'lca.static_clip(x, threshold=tau)'),
  Pair('ARC(f)(x)', 'lca.arc(x, f=f)'),
  Pair('TrMean(f)(NNM(f)(x))', 'lca.chain(lca.nnm, lca.trimmed_mean)(x, f=f)'),
]

BYZPY = [
  Pair(
    'CoordinateWiseMedian().aggregate(rows)', "lca.median(x, median='lower')"
  ),
  Pair(
    'CoordinateWiseTrimmedMean(f).aggregate(rows)', 'lca.trimmed_mean(x, f=f)'
  ),
  Pair(
    'MeanOfMedians(f).aggregate(rows)', "lca.meamed(x, f=f, median='lower')"
  ),
  Pair('Krum(f).aggregate(rows)', 'lca.krum(x, f=f, num_neighbors=n-f-1)'),
  Pair(
    'MultiKrum(f, 3).aggregate(rows)',
    'lca.multi_krum(x, f=f, m=3, num_neighbors=n-f-1)',
  ),
  Pair('ComparativeGradientElimination(f).aggregate(rows)', 'lca.cge(x, f=f)'),
  Pair('MoNNA(f).aggregate(rows)', 'lca.monna(x, f=f)'),
  Pair(
    'MinimumDiameterAveraging(f).aggregate(rows)',
    "lca.mda(x, f=f, ties='first')",
  ),
  Pair('SMEA(f).aggregate(rows)', 'lca.smea(x, f=f)'),
  Pair(
    'CAF(f, power_iters=1000).aggregate(rows)',
    "lca.caf(x, f=f, farthest='any')",
  ),
  Pair(
    'CAF(f, power_iters=1000).aggregate(rows)',
    'lca.caf(x, f=f)',
    'differs where a client that has no weight left is the farthest: theirs '
    'still divides by its distance',
    equal=False,
  ),
  Pair(
    'GeometricMedian().aggregate(rows)',
    'lca.geometric_median(x, num_iters=200, tol=0)',
    'both converged; the start does not matter',
  ),
  Pair(
    "GeometricMedian(init='mean', max_iter=3).aggregate(rows)",
    "lca.geometric_median(x, init='mean', num_iters=3, tol=0)",
  ),
  Pair(
    'CenteredClipping(c_tau=tau).aggregate(rows)',
    "once(lca.centered_clip(threshold=tau, num_iters=10, init='mean'))",
    'theirs keeps no state',
  ),
  Pair(
    "CenteredClipping(c_tau=tau, M=3, init='zero').aggregate(rows)",
    "once(lca.centered_clip(threshold=tau, num_iters=3, init='zero'))",
    'theirs keeps no state',
  ),
  Pair('NearestNeighborMixing(f).pre_aggregate(rows)', 'lca.nnm(x, f=f)'),
  Pair(
    'Bucketing(2, perm=order).pre_aggregate(rows)',
    'lca.bucketing(x, key=key, bucket_size=2)',
    'order is jax.random.permutation(key, n)',
  ),
  Pair(
    'Clipping(tau).pre_aggregate(rows)', 'lca.static_clip(x, threshold=tau)'
  ),
  Pair('ARC(f).pre_aggregate(rows)', 'lca.arc(x, f=f)'),
]

FLEXCLASH = [
  Pair('median(clients)', "lca.median(leaves, median='upper')"),
  Pair(
    'trimmed_mean(clients, trim_proportion=0.2)',
    'lca.trimmed_mean(leaves, f=round(0.2*n), f_above=n-1-round(0.8*n))',
    'theirs keeps one more above than below',
  ),
  Pair('multikrum(clients, f=f, m=1)', 'lca.krum(leaves, f=f)'),
  Pair(
    'multikrum(clients, f=f, m=5)',
    'lca.bulyan_trimmed(leaves, f=f, m=5, trim=2)',
    'theirs takes the median, not the mean, of the m; m odd',
  ),
  Pair(
    'bulyan(clients, f=f, m=f)',
    'lca.bulyan(leaves, f=f)',
    SORTED_IN_PLACE,
    equal=False,
  ),
  Pair(
    'central_differential_privacy(clients, l2_clip=tau, noise_multiplier=0)',
    'lca.chain(lca.static_clip, lca.mean)(leaves, threshold=tau)',
    'without noise',
  ),
]

FLWR = [
  Pair('aggregated(FedAvg())', 'lca.mean(leaves, weights=examples)'),
  Pair('aggregated(FedMedian())', 'lca.median(leaves)'),
  Pair(
    'aggregated(FedTrimmedAvg(beta=0.2))',
    'lca.trimmed_mean(leaves, f=int(0.2*n))',
  ),
  Pair('aggregated(Krum(num_malicious_nodes=f))', 'lca.krum(leaves, f=f)'),
  Pair(
    'aggregated(MultiKrum(num_malicious_nodes=f, num_nodes_to_select=3))',
    'lca.mean(leaves, weights=examples'
    " * lca.explain(lca.multi_krum)(leaves, f=f, m=3)[1]['selected'])",
    'theirs weighs the selected by the examples that they report',
  ),
  Pair(
    'aggregated(MultiKrum(num_malicious_nodes=f, num_nodes_to_select=3))',
    'lca.multi_krum(leaves, f=f, m=3)',
    'equal only if all report the same number of examples',
    equal=False,
  ),
  Pair(
    'aggregate_krum([(row, 1) for row, _ in results], f, to_keep=3)',
    'lca.multi_krum(leaves, f=f, m=3)',
    'flwr.server, equal numbers of examples',
  ),
  Pair(
    'aggregated(Bulyan(num_malicious_nodes=f))',
    "lca.bulyan(leaves, f=f, selection='once')",
    'flwr.serverapp: the n - 2f lowest scores, computed once',
  ),
  Pair(
    'aggregate_bulyan(results, f, aggregate_krum, to_keep=0)',
    'lca.bulyan(leaves, f=f)',
    'flwr.server: one selection at a time',
  ),
  Pair(
    'aggregate(clipped(tau))',
    'lca.chain(lca.static_clip, lca.mean)(leaves, threshold=tau)',
    'its fixed clipping for differential privacy, without noise and with '
    'equal numbers of examples',
  ),
]

BLADES = [
  Pair('Mean()(rows)', 'lca.mean(x)'),
  Pair('Median()(rows)', 'lca.median(x)'),
  Pair('Trimmedmean(f)(rows)', 'lca.trimmed_mean(x, f=f)'),
  Pair(
    'GeoMed(maxiter=200, ftol=-1.0)(rows)',
    'lca.geometric_median(x, num_iters=200, tol=0)',
    'both converged; the start does not matter',
  ),
  Pair(
    'GeoMed()(rows)',
    'lca.geometric_median(x)',
    'theirs stops where the sum of distances no longer changes, which on '
    'another machine it did early, for a difference of 3e-4',
  ),
  Pair(
    'GeoMed(maxiter=3)(rows)',
    "lca.geometric_median(x, init='mean', num_iters=3, tol=0)",
  ),
  Pair(
    'DnC(f, num_iters=1)(rows)',
    'lca.dnc(x, f=f)',
    'up to 10,000 parameters, all of which both then use',
  ),
  Pair(
    'Multikrum(f, k=3)(rows)',
    'lca.multi_krum(x, f=f, m=3, power=4)',
  ),
  Pair(
    'twice(Centeredclipping(tau=tau, n_iter=3))',
    'twice(lca.centered_clip(threshold=tau, num_iters=3))',
    'second of two rounds',
  ),
  Pair(
    'twice(Clippedclustering())',
    'twice(lca.clipped_clustering(threshold=1e5))',
    'second of two rounds; no row is zero',
  ),
  Pair(
    'Signguard()(rows)',
    'lca.sign_guard(x, fraction=1)',
    'theirs clusters by k-means, ours by average linkage',
    equal=False,
  ),
]

PAPER = [
  Pair('layerwise_krum(clients, f=f)', 'lca.layerwise(lca.krum)(leaves, f=f)'),
  Pair(
    'krum_cosine_similarity(clients, f=f)',
    'lca.cosine(lca.krum, clip=None)(leaves, f=f)',
  ),
  Pair(
    'krum_cosine_similarity_layerwise(clients, f=f)',
    'lca.layerwise(lca.cosine(lca.krum, clip=None))(leaves, f=f)',
  ),
  Pair(
    "clipped('krum_cosine_similarity', f=f)",
    "lca.cosine(lca.krum, clip_by='leaf', median='lower')(leaves, f=f)",
  ),
  Pair(
    "clipped('krum_cosine_similarity_layerwise', f=f)",
    "lca.layerwise(lca.cosine(lca.krum, median='lower'))(leaves, f=f)",
  ),
  Pair('geomed(clients)', 'lca.medoid(leaves)'),
  Pair('layerwise_geomed(clients)', 'lca.layerwise(lca.medoid)(leaves)'),
  Pair('cosine_geomed(clients)', 'lca.cosine(lca.medoid, clip=None)(leaves)'),
  Pair(
    "clipped('layerwise_cosine_geomed')",
    "lca.layerwise(lca.cosine(lca.medoid, median='lower'))(leaves)",
  ),
  Pair(
    'bulyan_cosine_similarity(clients, f=f, m=7)',
    'lca.cosine(lca.bulyan_trimmed, clip=None)(leaves, f=f, m=7)',
  ),
  Pair(
    'bulyan_cosine_similarity_layerwise(clients, f=f, m=7)',
    'lca.layerwise(lca.cosine(lca.bulyan_trimmed, clip=None))'
    '(leaves, f=f, m=7)',
  ),
  Pair(
    "clipped('bulyan_cosine_similarity_layerwise', f=f, m=7)",
    "lca.layerwise(lca.cosine(lca.bulyan_trimmed, median='lower'))"
    '(leaves, f=f, m=7)',
    'theirs clips the result, ours what is trimmed and averaged',
    equal=False,
  ),
  Pair(
    'layerwise_bulyan(clients, f=f, m=f)',
    'lca.layerwise(lca.bulyan)(leaves, f=f)',
    SORTED_IN_PLACE,
    equal=False,
  ),
]

LASA = [
  Pair(
    'lasa(sparsity=0.3, lambda_n=2.0, lambda_s=1.0)',
    'lca.lasa(leaves, sparsity=0.3, norm_bound=2.0, sign_bound=1.0)',
  ),
  Pair(
    'lasa(sparsity=0.0, lambda_n=1.0, lambda_s=1.0)',
    'lca.lasa(leaves, sparsity=0.0, norm_bound=1.0, sign_bound=1.0)',
  ),
]

FOOLSGOLD = [
  Pair(
    'average(foolsgold(x))',
    'lca.foolsgold(x)',
    'theirs returns the weights; both without history',
  ),
]

ALIGNINS = [
  Pair(
    'align_ins(sparsity=0.3, lambda_s=1.0, lambda_c=1.0)',
    'lca.align_ins(x, params=y[0], weights=examples)',
  ),
  Pair(
    'align_ins(sparsity=0.1, lambda_s=1.5, lambda_c=0.8)',
    'lca.align_ins(x, params=y[0], weights=examples, top_fraction=0.1, '
    'lambda_s=1.5, lambda_c=0.8)',
  ),
  Pair('multi_metrics()', 'lca.multi_metrics(x, weights=examples)'),
]

CRFL = [
  Pair(
    f'crfl(norm={norm})',
    f'lca.crfl(sigma=0.0).update(x, {t - 1}, params=y[0])[0]',
    f'round {t}, without noise; theirs adds it after the test',
  )
  for t, norm in ((1, 2.1), (100, 12.0), (200, 15))
]

FLDETECTOR = [
  Pair(
    'last_scores(descent(6))',
    'scores(lca.fl_detector(num_clients=n, window=4, start=9), descent(6))',
    'the first round with scores, of a window of 4',
  ),
]

FLANDERS = [
  Pair(
    'scores(u, v)',
    'scores(lca.flanders(f=0, num_clients=n), sent(u, u, v))',
    'its window of 2: the last models are regressed on themselves',
  ),
  Pair(
    'scores(u, v)',
    'scores(lca.flanders(f=0, num_clients=n), sent(u, v))',
    'ours regresses the last models on those before',
    equal=False,
  ),
  Pair(
    'scores(u, v, w, alpha=20, beta=20)',
    'scores(lca.flanders(f=0, num_clients=n, window=3, alpha=20, beta=20), '
    'sent(v, u, v, w))',
    'a window of 3: the first models are regressed on the last',
  ),
  Pair(
    'scores(u + 9, v + 9)',
    'scores(lca.flanders(f=0, num_clients=n), sent(u + 9, u + 9, v + 9))',
    'theirs fits models less their least entry, and applies the fit to models '
    'with it',
    equal=False,
  ),
]

SYSTEMS = {
  'byzfl': System('byzfl', byzfl_names, BYZFL, 'byzfl'),
  'byzpy': System('byzpy', byzpy_names, BYZPY, 'byzpy'),
  'flexclash': System('flexclash', flexclash_names, FLEXCLASH, 'flexclash'),
  'Flower': System('flwr', flwr_names, FLWR, 'flwr'),
  'Blades': System('fllib', blades_names, BLADES),
  'layerwise cosine paper': System('aggregators', paper_names, PAPER),
  'LASA': System('algorithms.defense.lasa', lasa_names, LASA),
  'FoolsGold': System('fg.foolsgold', foolsgold_names, FOOLSGOLD),
  'AlignIns': System('aggregation', alignins_names, ALIGNINS),
  'CRFL': System('utils.helper', crfl_names, CRFL),
  'FLDetector': System('train_mnist', fl_detector_names, FLDETECTOR),
  'FLANDERS': System('flanders.strategy', flanders_names, FLANDERS),
}


Trials = list[tuple[Any, Names]]
"""The data of each comparison, and the names that our expressions may use."""


def installed(system: System) -> bool:
  """Returns True if the system's module can be imported."""
  with contextlib.suppress(ModuleNotFoundError):
    return importlib.util.find_spec(system.module) is not None
  return False


def flat(result: Any) -> np.ndarray:
  """Returns an update, or stacked updates, as one float64 vector."""
  parts = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)]
  return np.concatenate([part.ravel() for part in parts])


def difference(system: System, pair: Pair, trials: Trials) -> float:
  """Returns the largest difference of a pair over all trials.

  A difference is relative to the largest finite entry of the result; NaN counts
  as infinite. Of random results it is the largest one between the distribution
  functions of their entries in all trials.
  """
  results = [
    (flat(eval(pair.theirs, system.names(trial))), flat(eval(pair.ours, names)))
    for trial, names in trials
  ]
  if pair.random:
    theirs, ours = map(np.concatenate, zip(*results, strict=True))
    statistic, _ = stats.ks_2samp(theirs, ours)
    return float(statistic)
  worst = 0.0
  for theirs, ours in results:
    # Infinities of the same sign are equal.
    gaps = np.subtract(
      theirs, ours, out=np.zeros_like(ours), where=theirs != ours
    )
    finite = np.abs(ours[np.isfinite(ours)])
    gap = np.max(np.abs(gaps)) / np.max(finite, initial=np.finfo(float).tiny)
    worst = np.fmax(worst, np.inf if np.isnan(gap) else gap)
  return float(worst)


def version(system: System) -> str:
  """Returns a system's version, or `(source)` if it has none."""
  if system.package is None:
    return '(source)'
  return importlib.metadata.version(system.package)


def compare(
  systems: dict[str, System], trials: Trials
) -> tuple[list[str], int]:
  """Returns the table's lines, and how many rows are not as expected."""
  lines = [
    '| system | their call | call here | largest relative difference | |',
    '| --- | --- | --- | --- | --- |',
  ]
  surprises = 0
  for name, system in systems.items():
    if not installed(system):
      lines.append(f'| {name} | | | not installed | |')
      continue
    for pair in system.pairs:
      worst = difference(system, pair, trials)
      equal = worst <= (RANDOM_TOLERANCE if pair.random else TOLERANCE)
      remark = pair.remark
      if pair.random:
        remark = f'in distribution. {remark}'
      if not pair.equal:
        remark = f'not equal: {remark}'
      if equal != pair.equal:
        surprises += 1
        remark = f'UNEXPECTED. {remark}'
      cells = name, f'`{pair.theirs}`', f'`{pair.ours}`', f'{worst:.1e}', remark
      lines.append(f'| {" | ".join(cells)} |')
  return lines, surprises


def page(
  title: str,
  program: str,
  about: str,
  systems: dict[str, System],
  trials: Trials,
) -> tuple[str, int]:
  """Returns a page, and how many of its rows are not as expected.

  Args:
    title: its heading.
    program: name of the module that writes it.
    about: a paragraph on what ran.
    systems: the systems to compare with, by name.
    trials: the data of the comparisons.
  """
  versions = [f'lca {lca.__version__}', f'jax {jax.__version__}']
  versions += [
    f'{name} {version(system)}'
    for name, system in systems.items()
    if installed(system)
  ]
  versions.append(f'Python {platform.python_version()}')
  table, surprises = compare(systems, trials)
  written = f'Written by `python -m {program}` with {", ".join(versions)}.'
  lines = [
    f'# {title}',
    *['', textwrap.fill(written, 80), '', textwrap.fill(about, 80), ''],
    *table,
  ]
  return '\n'.join(lines) + '\n', surprises


def write(about: str, make: Callable[[], tuple[str, int]]) -> int:
  """Writes a page to the terminal, and to a file that the command line names.

  Args:
    about: what the command does.
    make: makes the page; see `page`.

  Returns:
    1 if a row is not as expected, else 0.
  """
  parser = argparse.ArgumentParser(description=about)
  parser.add_argument('--output', help='a file to write the page to')
  args = parser.parse_args()
  text, surprises = make()
  print(text, end='')
  if args.output:
    with open(args.output, 'w') as file:
      file.write(text)
  return 1 if surprises else 0


def make_page() -> tuple[str, int]:
  """Returns the page on rules; see `page`."""
  sizes = ' and '.join(map(str, SIZES))
  about = (
    'Both calls of a row ran as they stand here, on the same float32 updates: '
    f'n = {sizes} clients, f = {F} of them Byzantine, {len(SEEDS)} seeds each. '
    '`x` is `[n, 1000]`, `leaves` the same in two leaves, a kernel and a bias; '
    '`rows` and `clients` are lists of them, one a client. `tau` is the median '
    'norm, `examples` what the clients report. `u`, `v` and `w` are models of '
    'three rounds without an entry below 0, and `descent` is rounds of clients '
    'who descend parabolas. A difference is the largest '
    "over the update's entries, relative to its largest entry; up to "
    f'{TOLERANCE:.0e} counts as equal.'
  )
  made = [make_trial(n, seed) for n in SIZES for seed in SEEDS]
  trials = [(trial, our_names(trial)) for trial in made]
  title = 'Which call equals which'
  return page(title, 'benchmarks.definitions', about, SYSTEMS, trials)


if __name__ == '__main__':
  raise SystemExit(write(__doc__.splitlines()[0], make_page))
