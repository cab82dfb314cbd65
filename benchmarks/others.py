"""Calls other systems' rules on the same updates, through their own interfaces.

byzfl takes one tensor `[n, parameters]`, byzpy a list of flat tensors, and
flex-clash (distributed as flexclash) a list of tensors for each client. The
time of a call includes conversions of these inputs inside the call, and leaves
out the time to build the inputs. "torch" is the code that a PyTorch user would
write. "torch by client" is layerwise cosine Krum on the clients' lists of
tensors, which are also the input of the layerwise cosine paper's code.

The systems' definitions differ. In Krum, byzfl and byzpy sum the distances to
n - f - 1 neighbours. In Multi-Krum, byzfl averages n - f clients, and
flex-clash takes the median of m clients. byzfl's geometric median stops after 3
iterations.

Two rules are left out: flex-clash's Bulyan, because its result is wrong, and
byzfl's SMEA, because a call takes minutes.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Call = Callable[[], Any]
Calls = dict[tuple[str, str], dict[str, Call]]
"""The calls of a rule and its form, `(rule, form)`, by the system's name."""

SYSTEMS = ('byzfl', 'byzpy', 'flexclash', 'torch')


def installed(system: str) -> bool:
  """Returns True if a system and PyTorch, which it needs, are installed."""
  return all(importlib.util.find_spec(name) for name in (system, 'torch'))


class Data:
  """The stacked updates in the forms that the systems take.

  Attributes:
    leaves: tensors `[n, columns]` that share the memory of the JAX arrays.
    flat: a tensor `[n, parameters]`.
    rows: `n` views into `flat`.
    clients: `n` lists of views into `leaves`, with a tensor for each layer.

  Args:
    leaves: JAX arrays `[n, ...]`.
  """

  def __init__(self, leaves: Sequence[Any]):
    import torch

    tensors = [torch.from_dlpack(leaf) for leaf in leaves]
    self.leaves = [x.reshape(len(x), -1) for x in tensors]
    self.flat = torch.cat(self.leaves, dim=1)
    self.rows = list(self.flat)
    self.clients = [list(row) for row in zip(*tensors, strict=True)]


def calls(data: Data, hyper: Mapping[str, Any]) -> Calls:
  """Returns the calls of all systems that are installed.

  Args:
    data: the updates.
    hyper: `f`, `f_many` (the `f` of the coordinate-wise rules), `m` and
      `threshold`.
  """
  makers = {
    'byzfl': _byzfl,
    'byzpy': _byzpy,
    'flexclash': _flexclash,
    'torch': _torch,
  }
  by_rule: Calls = {}
  for system, maker in makers.items():
    if installed(system):
      for (rule, form, who), call in maker(data, **hyper).items():
        by_rule.setdefault((rule, form), {})[who] = call
  return by_rule


def _byzfl(data, f, f_many, m, threshold):
  byzfl = importlib.import_module('byzfl')
  rules = {
    'mean': byzfl.Average(),
    'krum': byzfl.Krum(f),
    'multi_krum': byzfl.MultiKrum(f),
    'mda': byzfl.MDA(f),
    'monna': byzfl.MoNNA(f),
    'median': byzfl.Median(),
    'trimmed_mean': byzfl.TrMean(f_many),
    'meamed': byzfl.Meamed(f_many),
    'geometric_median': byzfl.GeometricMedian(),
    'caf': byzfl.CAF(f),
    'centered_clip': byzfl.CenteredClipping(tau=threshold),
    'nnm': byzfl.NNM(f),
    'bucketing': byzfl.Bucketing(2),
  }
  # These rules overwrite a tensor that is their argument. They copy the rows of
  # a list into a new tensor first.
  in_place = {'static_clip': byzfl.Clipping(threshold), 'arc': byzfl.ARC(f)}
  return _plain('byzfl', rules, data.flat) | _plain(
    'byzfl', in_place, data.rows
  )


def _plain(system, rules, argument):
  """Returns a call of each rule on the argument."""
  return {
    (name, 'plain', system): lambda rule=rule: rule(argument)
    for name, rule in rules.items()
  }


def _byzpy(data, f, f_many, m, threshold):
  def module(name):
    return importlib.import_module(f'byzpy.{name}')

  columns = 'aggregators.coordinate_wise'
  space = 'aggregators.geometric_wise'
  norms = 'aggregators.norm_wise'
  krum = module(f'{space}.krum')
  median = module(f'{columns}.median')
  trimmed = module(f'{columns}.trimmed_mean')
  centre = module(f'{space}.geometric_median')
  mda = module(f'{space}.minimum_diameter_average')
  clip = module(f'{norms}.center_clipping')
  cge = module(f'{norms}.comparative_gradient_elimination')
  pre = module('pre_aggregators')
  rules = {
    'krum': krum.Krum(f),
    'multi_krum': krum.MultiKrum(f, m),
    'mda': mda.MinimumDiameterAveraging(f),
    'monna': module(f'{space}.monna').MoNNA(f),
    'smea': module(f'{space}.smea').SMEA(f),
    'cge': cge.ComparativeGradientElimination(f),
    'median': median.CoordinateWiseMedian(),
    'trimmed_mean': trimmed.CoordinateWiseTrimmedMean(f_many),
    'geometric_median': centre.GeometricMedian(),
    'caf': module(f'{norms}.caf').CAF(f),
    'centered_clip': clip.CenteredClipping(c_tau=threshold, M=1, init='zero'),
  }
  before = {
    'nnm': pre.NearestNeighborMixing(f),
    'bucketing': pre.Bucketing(2),
    'static_clip': pre.Clipping(threshold),
    'arc': pre.ARC(f),
  }
  methods = {name: rule.aggregate for name, rule in rules.items()}
  methods |= {name: rule.pre_aggregate for name, rule in before.items()}
  return _plain('byzpy', methods, data.rows)


def _flexclash(data, f, f_many, m, threshold):
  pool = importlib.import_module('flexclash.pool')
  share = f_many / len(data.rows)

  def call(rule, **hyper):
    # flex-clash's rules take the server's dict, and write their result into it.
    return lambda: rule({'weights': data.clients}, None, **hyper)

  return {
    ('krum', 'plain', 'flexclash'): call(pool.multikrum, f=f, m=1),
    ('multi_krum', 'plain', 'flexclash'): call(pool.multikrum, f=f, m=m),
    ('median', 'plain', 'flexclash'): call(pool.median),
    ('trimmed_mean', 'plain', 'flexclash'): call(
      pool.trimmed_mean, trim_proportion=share
    ),
  }


def _torch(data, f, f_many, m, threshold):
  torch = importlib.import_module('torch')
  n = len(data.flat)
  weights = torch.from_numpy(np.linspace(0.5, 1.5, n, dtype=np.float32) / n)

  def trimmed():
    ordered = torch.sort(data.flat, dim=0).values
    return ordered[f_many : n - f_many].mean(0)

  def gram_by_leaf():
    return sum(x @ x.T for x in data.leaves)

  return {
    ('gram', 'kernel', 'torch by leaf'): gram_by_leaf,
    ('gram', 'kernel', 'torch'): lambda: data.flat @ data.flat.T,
    ('mix', 'all rows', 'torch'): lambda: weights @ data.flat,
    ('mean', 'plain', 'torch'): lambda: data.flat.mean(0),
    ('krum', 'plain', 'torch'): lambda: _krum(data.flat, f),
    ('krum', 'layerwise cosine', 'torch'): lambda: [
      _cosine_krum(x, f) for x in data.leaves
    ],
    ('krum', 'layerwise cosine', 'torch by client'): lambda: [
      _cosine_krum(torch.stack([x.flatten() for x in layer]), f)
      for layer in zip(*data.clients, strict=True)
    ],
    ('krum', 'layerwise cosine', 'torch Gram by leaf'): gram_by_leaf,
    ('median', 'plain', 'torch'): lambda: torch.median(data.flat, dim=0),
    ('trimmed_mean', 'plain', 'torch'): trimmed,
  }


def _krum(rows, f):
  """Returns Krum of `[n, columns]` rows, with distances from one product."""
  squares = (rows * rows).sum(1)
  between = squares[:, None] + squares - 2 * (rows @ rows.T)
  return rows[_most_central(between, f)]


def _cosine_krum(rows, f):
  """Returns cosine Krum of rows, clipped to the (lower) median norm."""
  lengths = rows.norm(dim=1)
  directions = rows / lengths[:, None]
  winner = _most_central(1 - directions @ directions.T, f)
  return rows[winner] * (lengths.median() / lengths[winner]).clamp(max=1)


def _most_central(between, f):
  """Returns the row of the lowest Krum score, from distances `[n, n]`."""
  between.fill_diagonal_(float('inf'))
  neighbours = len(between) - f - 2
  return between.sort(dim=1).values[:, :neighbours].sum(1).argmin()
