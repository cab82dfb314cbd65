"""Attacks: how Byzantine clients change their examples and their updates.

An attack on the updates is a function `(updates, *, byzantine, key=None,
**options) -> updates`. The boolean mask `byzantine`, `[n]`, marks the rows of
the attackers. The function replaces these rows and returns the honest rows bit
for bit. It computes in float32 or wider and keeps the dtypes of the leaves.
`from_function` binds the options of such a function and returns an `Attack`,
which a simulation takes; `make` builds an `Attack` from a config.

Attackers collude and know the honest updates of the round. Honest rows that are
rejected (see `lca.geometry`), such as those of clients that did not answer, are
left out of the statistics that attackers compute, but they still count in `n`.
Without any honest row, means, deviations, extremes and distances are 0, and
colluding clients send zeros.
"""

from lca.attacks import triggers
from lca.attacks.a3fl import a3fl
from lca.attacks.backdoors import (
  backdoor,
  badnets,
  blended,
  dba,
  edge_case,
  sinusoidal,
)
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
  flip_complement,
  flip_labels,
  flip_mapping,
  flip_next,
  flip_source,
  label_flipping,
  model_replacement,
)
from lca.attacks.make import ATTACKS, POPULATION_KEYS, make
from lca.attacks.noise import (
  constant,
  free_rider,
  gaussian,
  layer_gaussian,
  non_finite,
  zero,
)
from lca.attacks.optimized import optimized
from lca.attacks.trained import gradient_ascent, with_training
from lca.attacks.training import Training
from lca.attacks.white_box import white_box

__all__ = [
  'ATTACKS',
  'NO_ATTACK',
  'POPULATION_KEYS',
  'Attack',
  'Boost',
  'Training',
  'a3fl',
  'alie',
  'backdoor',
  'badnets',
  'blended',
  'constant',
  'dba',
  'edge_case',
  'fall_of_empires',
  'fang_krum',
  'fang_trimmed_mean',
  'flip_complement',
  'flip_labels',
  'flip_mapping',
  'flip_next',
  'flip_source',
  'free_rider',
  'from_function',
  'gaussian',
  'gradient_ascent',
  'label_flipping',
  'layer_gaussian',
  'make',
  'mimic',
  'min_max',
  'min_sum',
  'model_replacement',
  'non_finite',
  'optimized',
  'replace',
  'sign_flip',
  'sinusoidal',
  'triggers',
  'update_attack',
  'white_box',
  'with_training',
  'zero',
]

for _attack in (
  a3fl,
  alie,
  badnets,
  blended,
  constant,
  dba,
  edge_case,
  fall_of_empires,
  fang_krum,
  fang_trimmed_mean,
  flip_complement,
  flip_next,
  flip_source,
  free_rider,
  gaussian,
  gradient_ascent,
  label_flipping,
  layer_gaussian,
  mimic,
  min_max,
  min_sum,
  non_finite,
  optimized,
  sign_flip,
  sinusoidal,
  white_box,
  zero,
):
  ATTACKS.register(_attack)
