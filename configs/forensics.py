"""A sweep: which layers a model replacer gets into, with and without the clip.

    python -m lca.sweep --config=configs/forensics.py --workdir=runs/forensics
    python -m lca.report --figure=layers_entered --workdir=runs/forensics

Section 5.2 of the layerwise cosine paper says that the cosine distance takes
two updates of very different norms for similar ones, and that the median clip
mitigates this. These runs keep evidence of every round (`eval.forensics`),
which shows how often the attacker is chosen in each layer, and how much of the
aggregate is then the attacker's.

The setting is the reduced one of `configs/tables.py`: Fashion-MNIST, 30 rounds
of 20 clients, one of whom replaces the model, and one local epoch in batches
of 64. Beside the paper's IID clients there are clients whose classes are drawn
from a Dirichlet distribution with alpha = 0.1. The six runs of a seed are named
`PARTITION/RULE`. A run takes about four minutes on two CPU cores.
"""

from configs import fashion_mnist, tables

RULES = (
  'layerwise_krum',
  'layerwise_cosine_krum',
  'layerwise_cosine_krum_noclip',
)


def get_runs():
  """Returns the configs of all runs by name."""
  return {
    f'{partition}/{rule}': _config(partition, rule)
    for partition in ('iid', 'dirichlet')
    for rule in RULES
  }


def _config(partition, rule):
  """Returns the config of one run."""
  presets = f'{rule},{partition},model_replacement'
  config = fashion_mnist.get_config(presets).unlock()
  config.update_from_flattened_dict(tables.REDUCED)
  config.eval.forensics = True
  if partition == 'dirichlet':
    config.data.alpha = 0.1
  return config.lock()
