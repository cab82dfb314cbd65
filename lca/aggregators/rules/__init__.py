"""The rules, one file per family.

`RULES` are functions from updates to one update. `PRE_AGGREGATORS` are
functions from updates to updates. `AGGREGATORS` are functions from
hyper-parameters to an Aggregator with a state. A new rule is added to the lists
of this file only: `lca` and `lca.aggregators` export all names in `__all__`.
"""

from lca.aggregators.brought import ROUND_BRINGS
from lca.aggregators.rules.adaptive_clip import adaptive_clip
from lca.aggregators.rules.align_ins import align_ins
from lca.aggregators.rules.averages import cge, monna
from lca.aggregators.rules.bulyan import bulyan, bulyan_trimmed
from lca.aggregators.rules.clipping import (
  arc,
  centered_clip,
  clip_to_median_norm,
  static_clip,
)
from lca.aggregators.rules.clustering import clipped_clustering, sign_guard
from lca.aggregators.rules.coordinates import (
  meamed,
  median,
  phocas,
  sign_majority,
  trimmed_mean,
)
from lca.aggregators.rules.crfl import crfl
from lca.aggregators.rules.deep_sight import deep_sight
from lca.aggregators.rules.fl_detector import fl_detector
from lca.aggregators.rules.flame import flame
from lca.aggregators.rules.flanders import flanders
from lca.aggregators.rules.geometric import geometric_median
from lca.aggregators.rules.krum import krum, medoid, multi_krum
from lca.aggregators.rules.lasa import lasa
from lca.aggregators.rules.learned_distance import learned_distance
from lca.aggregators.rules.legato import legato
from lca.aggregators.rules.mean import mean
from lca.aggregators.rules.mixing import bucketing, nnm
from lca.aggregators.rules.multi_metrics import multi_metrics
from lca.aggregators.rules.rflbat import rflbat
from lca.aggregators.rules.spectral import caf, dnc
from lca.aggregators.rules.subsets import mda, smea
from lca.aggregators.rules.trust import fltrust, foolsgold
from lca.registry import Registry

RULES = Registry(
  'rule',
  (
    align_ins,
    bulyan,
    bulyan_trimmed,
    caf,
    cge,
    deep_sight,
    dnc,
    flame,
    fltrust,
    foolsgold,
    geometric_median,
    krum,
    lasa,
    mda,
    meamed,
    mean,
    median,
    medoid,
    monna,
    multi_krum,
    multi_metrics,
    phocas,
    rflbat,
    sign_guard,
    sign_majority,
    smea,
    trimmed_mean,
  ),
  brought=ROUND_BRINGS,
  of_data=True,
)
"""Functions from stacked updates to one update."""

AGGREGATORS = Registry(
  'aggregator with a state',
  (
    adaptive_clip,
    centered_clip,
    clipped_clustering,
    crfl,
    fl_detector,
    flanders,
    learned_distance,
    legato,
  ),
)
"""Functions from hyper-parameters to an Aggregator with a state."""

PRE_AGGREGATORS = Registry(
  'pre-aggregator',
  (arc, bucketing, clip_to_median_norm, nnm, static_clip),
  brought=ROUND_BRINGS,
  of_data=True,
)
"""Functions from stacked updates to stacked updates."""

__all__ = [
  'adaptive_clip',
  'align_ins',
  'arc',
  'bucketing',
  'bulyan',
  'bulyan_trimmed',
  'caf',
  'centered_clip',
  'cge',
  'clip_to_median_norm',
  'clipped_clustering',
  'crfl',
  'deep_sight',
  'dnc',
  'fl_detector',
  'flame',
  'flanders',
  'fltrust',
  'foolsgold',
  'geometric_median',
  'krum',
  'lasa',
  'learned_distance',
  'legato',
  'mda',
  'meamed',
  'mean',
  'median',
  'medoid',
  'monna',
  'multi_krum',
  'multi_metrics',
  'nnm',
  'phocas',
  'rflbat',
  'sign_guard',
  'sign_majority',
  'smea',
  'static_clip',
  'trimmed_mean',
]
