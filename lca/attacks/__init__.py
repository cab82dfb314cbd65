"""Byzantine clients: what they do to their labels and to their updates.

Which rows are Byzantine is always a mask `[n]`, never a position. An attack on
the updates is a function `(updates, *, byzantine, key=None, **options) ->
updates`: honest rows come back bit for bit, dtypes are kept, and what is sent
is computed in float32 or wider. `make` and `from_function` turn one into an
`Attack`, what a simulation takes.

Attackers know the honest updates of the round and collude. What they compute
leaves out honest rows that no rule would mix either (see `lca.geometry`), such
as those of clients that did not answer; they still count among n. With no
honest row, means, deviations, extremes and distances are zero, and so is what
colluding clients send.
"""

from lca.attacks.base import (
  NO_ATTACK,
  Attack,
  from_function,
  replace,
  update_attack,
)
from lca.attacks.collusion import alie, fall_of_empires, mimic, sign_flip
from lca.attacks.distance import min_max, min_sum
from lca.attacks.fang import fang_krum, fang_trimmed_mean
from lca.attacks.labels import (
  Boost,
  flip_labels,
  label_flipping,
  model_replacement,
)
from lca.attacks.make import ATTACKS, POPULATION_KEYS, make
from lca.attacks.noise import constant, gaussian, non_finite, zero
from lca.attacks.optimized import optimized

__all__ = [
  'ATTACKS',
  'NO_ATTACK',
  'POPULATION_KEYS',
  'Attack',
  'Boost',
  'alie',
  'constant',
  'fall_of_empires',
  'fang_krum',
  'fang_trimmed_mean',
  'flip_labels',
  'from_function',
  'gaussian',
  'label_flipping',
  'make',
  'mimic',
  'min_max',
  'min_sum',
  'model_replacement',
  'non_finite',
  'optimized',
  'replace',
  'sign_flip',
  'update_attack',
  'zero',
]

for _attack in (
  alie,
  constant,
  fall_of_empires,
  fang_krum,
  fang_trimmed_mean,
  gaussian,
  label_flipping,
  mimic,
  min_max,
  min_sum,
  non_finite,
  optimized,
  sign_flip,
  zero,
):
  ATTACKS.register(_attack)
