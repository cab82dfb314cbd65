"""A sweep: the runs behind the layerwise cosine paper's Tables 1 to 6.

    python -m lca.sweep --config=configs/tables.py --workdir=runs/tables \
--only=table1,fashion_mnist
    python -m lca.report --tables --workdir=runs/tables

A run is named by its table, data set and variant, such as
`table4/emnist_non_iid/layerwise_cosine`. There are 144, one for each row of the
tables. `main.py` runs the same, for instance with
--config=configs/emnist.py:layerwise_cosine_krum,non_iid,model_replacement.
They are runs for a GPU or TPU: 100 rounds of 100 clients, 10 local epochs. They
have not been run at this scale.

With --scale=reduced, given to both commands, the runs are for a CPU:
Fashion-MNIST, 30 rounds of 20 clients, one local epoch in batches of 64. A
round trains on 6,000 images, a 50th of the full scale. The names start with
`reduced/`. Beside the 24 rows of the tables, the groups `beyond_none` and
`beyond_model_replacement` run rules that the paper has in no table: the cosine
variants without their clip (section 5.2), the mean, and Bulyan as El Mhamdi et
al. define it.

Time of the reduced scale: with --jobs=2 two runs take about seven minutes on
two CPU cores, and each seed has 40.

Expected at the reduced scale (benchmarks/results/README.md, average test
accuracy without an attack): Krum 0.828, layerwise 0.837, cosine 0.824,
layerwise cosine 0.831, and the mean 0.870. Under model replacement the mean
falls to 0.768; the variants that keep their clip lose less than half a point.
"""

import itertools

from configs import celeba, cifar10, emnist, fashion_mnist

SETTINGS = {
  'cifar10': (cifar10, 'iid'),
  'celeba_s': (celeba, 'iid'),
  'celeba_s_non_iid': (celeba, 'non_iid'),
  'emnist': (emnist, 'iid'),
  'emnist_non_iid': (emnist, 'non_iid'),
  'fashion_mnist': (fashion_mnist, 'iid'),
}
ATTACKS = ('none', 'model_replacement')
OPERATORS = ('krum', 'geomed', 'bulyan')
VARIANTS = {
  'plain': '',
  'layerwise': 'layerwise_',
  'cosine': 'cosine_',
  'layerwise_cosine': 'layerwise_cosine_',
}
BEYOND = (
  'fedavg',
  'bulyan2018',
  *(f'cosine_{operator}_noclip' for operator in OPERATORS),
  *(f'layerwise_cosine_{operator}_noclip' for operator in OPERATORS),
)

REDUCED = {
  'num_rounds': 30,
  'client.batch_size': 64,
  'client.local_epochs': 1,
  'server.clients_per_round': 20,
}


def get_runs(scale: str = 'full'):
  """Returns the configs of all runs by name.

  Args:
    scale: 'full' or 'reduced'.

  Raises:
    ValueError: another scale.
  """
  if scale == 'full':
    return _tables(SETTINGS)
  if scale == 'reduced':
    runs = _tables(['fashion_mnist']) | _beyond('fashion_mnist')
    for config in runs.values():
      config.update_from_flattened_dict(REDUCED)
    return {f'reduced/{name}': config for name, config in runs.items()}
  raise ValueError(f"unknown scale {scale!r}; use 'full' or 'reduced'")


def _tables(datasets):
  """Returns the runs of all rows of the tables for some data sets."""
  runs = {}
  tables = itertools.product(ATTACKS, OPERATORS)
  for number, (attack, operator) in enumerate(tables, start=1):
    for dataset in datasets:
      for variant, prefix in VARIANTS.items():
        runs[f'table{number}/{dataset}/{variant}'] = config_of(
          dataset, prefix + operator, attack
        )
  return runs


def _beyond(dataset):
  """Returns the runs that are no rows of the tables, for one data set."""
  return {
    f'beyond_{attack}/{dataset}/{rule}': config_of(dataset, rule, attack)
    for attack in ATTACKS
    for rule in BEYOND
  }


def config_of(dataset, rule, attack):
  """Returns the config of one run at full scale."""
  setting, clients = SETTINGS[dataset]
  presets = [rule, clients, *([] if attack == 'none' else [attack])]
  config = setting.get_config(','.join(presets))
  if 'f' in config.aggregator:
    # As in the paper, f is 1 with any number of attackers, and with none.
    config.aggregator.f = 1
  return config
