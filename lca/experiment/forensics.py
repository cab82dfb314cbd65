"""Reads and writes the evidence of a run: whom the rule chose, layer by layer.

A run with `eval.forensics` keeps two files in its directory. `forensics.json`
names the layers and the fields; `forensics.bin` holds one record of equal size
for every round. `read` returns both as labelled arrays:

    found = read('runs/x')
    found.selected[-1, found.layers.index('params/Dense_0/kernel')]
    found.per_round()['byzantine_share']
    found.to_xarray()                     # with dimensions and coordinates
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lca.experiment import files

# Numbers of each client, of each client in each layer, and of each layer.
_OF_CLIENTS = {'ids': '<i4', 'byzantine': '?', 'answered': '?'}
_OF_BOTH = {
  'weights': '<f4',
  'selected': '?',
  'rejected': '?',
  'norms': '<f4',
  'distances': '<f4',
  'cos_aggregate': '<f2',
  'cos_honest': '<f2',
}
_OF_LAYERS = {
  'aggregate_norm': '<f4',
  'honest_norm': '<f4',
  'gap': '<f4',
}
_REMEDY = 'delete the directory, and the same command runs it anew'


class Writer:
  """Appends the evidence of rounds to the files of a run.

  Args:
    run: the directory of the run.
    layers: names of the layers.
    rounds: number of rounds whose evidence is kept; later ones, which a killed
      process has left, are cut off.

  Raises:
    OSError: the files hold fewer rounds, are damaged, or are missing.
  """

  def __init__(self, run: pathlib.Path, layers: Sequence[str], rounds: int):
    self._run, self._layers, self._dtype = run, list(layers), None
    if not rounds:
      for name in ('forensics.json', 'forensics.bin'):
        (run / name).unlink(missing_ok=True)
      return
    try:
      _, records = _read(run)
    except ValueError as error:
      raise OSError(str(error)) from None
    if len(records) < rounds:
      raise OSError(
        f'{run}/forensics.bin is damaged (fewer than {rounds} rounds): '
        f'{_REMEDY}'
      )
    self._dtype = records.dtype
    os.truncate(run / 'forensics.bin', rounds * records.itemsize)

  def add(self, evidence: Mapping[str, np.ndarray]) -> None:
    """Appends one round.

    Args:
      evidence: from `lca.federated.forensics.evidence`, and the clients' `ids`.
    """
    if self._dtype is None:  # the first round of the run
      about = {
        'layers': self._layers,
        'clients': len(evidence['ids']),
        'fields': [k for k in _FIELDS if k in evidence],
      }
      text = json.dumps(about, indent=1) + '\n'
      files.write(self._run / 'forensics.json', text)
      self._dtype = _dtype(about)
    record = np.zeros((), self._dtype)
    for name in self._dtype.names:
      record[name] = evidence[name]
    with open(self._run / 'forensics.bin', 'ab') as file:
      file.write(record.tobytes())
      # A checkpoint that outlives the evidence of its rounds, as in a power
      # failure, could not be continued.
      file.flush()
      os.fsync(file.fileno())


_FIELDS = _OF_CLIENTS | _OF_BOTH | _OF_LAYERS


def _dtype(about: Mapping[str, Any]) -> np.dtype:
  """Returns the type of a round's record, from the content of the JSON file."""
  layers, n = len(about['layers']), about['clients']
  shapes = (
    dict.fromkeys(_OF_CLIENTS, (n,))
    | dict.fromkeys(_OF_BOTH, (layers, n))
    | dict.fromkeys(_OF_LAYERS, (layers,))
  )
  return np.dtype([(k, _FIELDS[k], shapes[k]) for k in about['fields']])


@dataclasses.dataclass(frozen=True, eq=False)
class Forensics:
  """The evidence of R rounds of n clients, in L layers.

  A layer is one leaf of the model. The honest mean of a round is the mean of
  the updates of its honest clients, without rejected and missing ones.

  Attributes:
    layers: names of the layers, such as `'params/Dense_0/kernel'`.
    rounds: `[R]` numbers of the rounds, from 1.
    clients: `[R, n]` ids of the clients.
    byzantine: `[R, n]`, True for attackers.
    answered: `[R, n]`, False for clients that did not answer.
    rejected: `[R, L, n]`, True for updates that are not finite or far too
      large.
    norms: `[R, L, n]` norms of the updates as the server received them.
    distances: `[R, L, n]`, from the honest mean.
    cos_aggregate: `[R, L, n]` cosines with the aggregate.
    cos_honest: `[R, L, n]` cosines with the honest mean.
    aggregate_norm, honest_norm: `[R, L]` norms of aggregate and honest mean.
    gap: `[R, L]` distances between aggregate and honest mean.
    selected: `[R, L, n]`, True for clients with a part in the aggregate; None
      if the rule reports no choice of clients, as the coordinate-wise rules.
    weights: `[R, L, n]` weights of the updates in the aggregate, the rule's own
      clips included; None if the rule reports no weights.
  """

  layers: list[str]
  rounds: np.ndarray
  clients: np.ndarray
  byzantine: np.ndarray
  answered: np.ndarray
  rejected: np.ndarray
  norms: np.ndarray
  distances: np.ndarray
  cos_aggregate: np.ndarray
  cos_honest: np.ndarray
  aggregate_norm: np.ndarray
  honest_norm: np.ndarray
  gap: np.ndarray
  selected: np.ndarray | None = None
  weights: np.ndarray | None = None

  def per_layer(self) -> dict[str, np.ndarray]:
    """Returns numbers about each layer of each round, `[R, L]`, by name.

    NaN stands for numbers that do not exist, such as the rate of attackers in a
    round without any. The first four need what the rule reports, and are left
    out otherwise.

    - `byzantine_share`: the attackers' share of the aggregate, in [0, 1]: the
      lengths of their parts `weight * update`, divided by those of all parts.
    - `attackers_selected`, `honest_selected`: the share of the attackers, and
      of the honest clients that answered, who have a part in the aggregate.
    - `contributors`: number of clients with a part in the aggregate.
    - `angle`: between the aggregate and the honest mean, in degrees.
    - `distance`: from the aggregate to the honest mean, divided by the honest
      clients' deviation, the root of their mean squared distance from it.
    - `krum_bound`: `eta(n, f) * deviation / |honest mean|`, the sine of the
      angle that Krum's theorem allows; its condition holds below 1 (see
      `krum_eta`). Here f is the number of attackers in the round.
    """
    return self._numbers(whole=False)

  def per_round(self) -> dict[str, np.ndarray]:
    """Returns numbers about each round, `[R]`, by name.

    The names are those of `per_layer`. The numbers are those of the whole
    model, whose layers together are one vector. A selection rate is the mean of
    the layers' rates, and `contributors` counts the clients with a part in at
    least one layer.
    """
    return {k: x[:, 0] for k, x in self._numbers(whole=True).items()}

  @np.errstate(divide='ignore', invalid='ignore')
  def _numbers(self, whole: bool) -> dict[str, np.ndarray]:
    """Returns the numbers of `per_layer`; `[R, 1]` of the model if `whole`."""

    def square(x):
      squares = np.square(x, dtype=float)
      return squares.sum(1, keepdims=True) if whole else squares

    attackers = self.byzantine[:, None]  # [R, 1, n]
    honest = ~attackers & self.answered[:, None]
    numbers = {}
    if self.weights is not None:
      norms = np.where(self.weights == 0, 0, self.norms)  # 0 * inf is NaN
      parts = np.sqrt(square(self.weights * norms))  # [R, L or 1, n]
      byzantine_parts = np.where(attackers, parts, 0).sum(2)
      numbers['byzantine_share'] = byzantine_parts / parts.sum(2)
    if self.selected is not None:
      for name, group in ('attackers', attackers), ('honest', honest):
        rates = (self.selected & group).sum(2) / group.sum(2)
        rates = rates.mean(1, keepdims=True) if whole else rates
        numbers[f'{name}_selected'] = rates
      chosen = self.selected.any(1, keepdims=True) if whole else self.selected
      numbers['contributors'] = chosen.sum(2)
    # The mean was taken over the honest clients that are rejected nowhere.
    counted = honest & ~self.rejected.any(1, keepdims=True)
    distances = np.where(counted, self.distances, 0)
    deviation = np.sqrt(square(distances).sum(2) / counted.sum(2))
    a, h, gap = (
      np.sqrt(square(x))
      for x in (self.aggregate_norm, self.honest_norm, self.gap)
    )
    # |a - h|^2 = (|a| - |h|)^2 + 4 |a| |h| sin^2(angle / 2) is more precise for
    # small angles than the cosine is.
    half = np.sqrt(np.clip((gap**2 - (a - h) ** 2) / (4 * a * h), 0, 1))
    n, f = self.byzantine.shape[1], self.byzantine.sum(1)
    eta = np.array([krum_eta(n, int(each)) for each in f])[:, None]
    return numbers | {
      'angle': np.degrees(2 * np.arcsin(half)),
      'distance': gap / deviation,
      'krum_bound': eta * deviation / h,
    }

  def to_xarray(self) -> Any:
    """Returns an `xarray.Dataset` with the dimensions round, layer and place.

    The places of a round are its n clients, in the order of the updates. The
    coordinates `client` and `byzantine` say who stood at each place.

    Raises:
      ImportError: xarray is not installed.
    """
    import xarray  # not required by lca

    dimensions = {1: ('round', 'layer'), 2: ('round', 'layer', 'place')}
    named = {k: getattr(self, k) for k in (*_OF_BOTH, *_OF_LAYERS)}
    who = {'client': self.clients, 'byzantine': self.byzantine}
    return xarray.Dataset(
      {
        k: (dimensions[x.ndim - 1], x)
        for k, x in named.items()
        if x is not None
      }
      | {'answered': (('round', 'place'), self.answered)},
      coords={'round': self.rounds, 'layer': self.layers}
      | {k: (('round', 'place'), x) for k, x in who.items()},
    )


def krum_eta(n: int, f: int) -> float:
  r"""Returns the constant of Krum's resilience theorem.

  .. math:: \eta(n, f) = \sqrt{2 \left(n - f + \frac{f (n - f - 2) + f^2 (n - f
      - 1)}{n - 2 f - 2}\right)}

  Krum is :math:`(\alpha, f)`-Byzantine resilient if :math:`\sin \alpha =
  \eta(n, f) \sqrt{E \|G - g\|^2} / \|g\|` is below 1, where G is an honest
  client's update and g its mean.

  Args:
    n: number of clients in a round.
    f: number of Byzantine clients.

  Returns:
    The constant; NaN unless n > 2 f + 2.

  Examples:
    >>> round(krum_eta(7, 2) ** 2)
    54

  References:
    Blanchard et al., Machine learning with adversaries, NeurIPS 2017, Prop. 1.
  """
  if n <= 2 * f + 2:
    return math.nan
  more = (f * (n - f - 2) + f**2 * (n - f - 1)) / (n - 2 * f - 2)
  return math.sqrt(2 * (n - f + more))


def read(run: str | os.PathLike) -> Forensics | None:
  """Reads the evidence of a run, finished or not.

  Args:
    run: the directory of the run.

  Returns:
    The evidence of the rounds so far; None if the run keeps none, or has not
    finished a round.

  Raises:
    ValueError: the files are damaged.
  """
  run = pathlib.Path(run).expanduser()
  if not (run / 'forensics.bin').exists():  # written after the other file
    return None
  about, records = _read(run)
  fields = {name: records[name] for name in records.dtype.names}
  return Forensics(
    layers=about['layers'],
    rounds=np.arange(1, len(records) + 1),
    clients=fields.pop('ids'),
    **fields,
  )


def _read(run: pathlib.Path) -> tuple[dict[str, Any], np.ndarray]:
  """Returns the content of the JSON file, and the records of all rounds.

  Raises:
    ValueError: a file is damaged or missing.
  """
  try:
    about = files.read_json(run / 'forensics.json', _REMEDY)
    return about, np.fromfile(run / 'forensics.bin', _dtype(about))
  except (KeyError, TypeError, FileNotFoundError) as error:
    raise ValueError(
      f'{run}/forensics.json is damaged ({error!r}): {_REMEDY}'
    ) from None
