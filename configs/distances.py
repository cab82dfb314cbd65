"""A sweep: distances that adapt to the layer, against model poisoning.

    python -m lca.sweep --config=configs/distances.py --workdir=runs/tables
    python -m lca.sweep --config=configs/backdoors.py --scale=start \
--workdir=runs/backdoors-start
    python -m lca.sweep --config=configs/distances.py --scale=backdoors \
--workdir=runs/backdoors

The rules are the layerwise forms of the paper's operators with the distances
`mixed`, `separating` and `rank_weighted`, after a clip to the median norm, and
`layerwise_learned_distance`. The settings are those of configs/tables.py at the
reduced scale, without an attack and under model replacement, and those of
configs/backdoors.py, of Krum alone. With the same folders as there, reports
show them beside the Euclidean and the cosine distance.

A run is named `reduced/distances_ATTACK/fashion_mnist/RULE` or
`backdoors/ALPHA/ATTACK x RULE`.

Time: with --jobs=2 on two CPU cores, two of the 20 runs at the reduced scale
take about seven minutes, and two of the 104 runs against a trained model about
20 seconds, those of `a3fl` two minutes. They have not been run yet.
"""

from configs import backdoors, tables

CLIP = 'clip_to_median_norm'
DISTANCES = ('mixed', 'separating', 'rank_weighted')
TABLES = (
  *(
    f'layerwise_{distance}_{operator},{CLIP}'
    for operator in tables.OPERATORS
    for distance in DISTANCES
  ),
  'layerwise_learned_distance',
)
BACKDOORS = (
  *(f'layerwise_{distance}_krum,{CLIP}' for distance in DISTANCES),
  'layerwise_learned_distance',
)


def get_runs(scale: str = 'reduced'):
  """Returns the configs of all runs by name.

  Args:
    scale: 'reduced' for the setting of the tables, or 'backdoors'.

  Raises:
    ValueError: another scale.
  """
  if scale == 'backdoors':
    return backdoors.attacked(BACKDOORS)
  if scale != 'reduced':
    raise ValueError(f"unknown scale {scale!r}; use 'reduced' or 'backdoors'")
  runs = {
    f'reduced/distances_{attack}/fashion_mnist/{rule}': tables.config_of(
      'fashion_mnist', rule, attack
    )
    for attack in tables.ATTACKS
    for rule in TABLES
  }
  for config in runs.values():
    config.update_from_flattened_dict(tables.REDUCED)
  return runs
