"""A sweep: the runs behind the LEGATO paper's figures.

    python -m lca.sweep --config=configs/legato_figures.py --workdir=runs/legato
    python -m lca.report --figure=legato_5 --workdir=runs/legato

Each run is one of `configs/legato_mnist.py`, and is named `FIGURE/LINE`. There
are 51 different runs for each seed. Two of them take eleven minutes on two CPU
cores with --jobs=2; Fig. 7's deep networks take half an hour. Without access to
MNIST, --set=data.name=fashion_mnist runs them on Fashion-MNIST.

`iid_none` is not a figure of the paper: it runs the four rules on IID data
without an attack, which section V of the paper compares in words.

With --scale=cifar10, given to both commands, the runs are those of Fig. 5's
other half (see `configs/legato_cifar10.py`).

Expected: benchmarks/results/README.md has all figures as measured with
Fashion-MNIST.
"""

from configs import legato_cifar10, legato_mnist

RULES = ('fedavg', 'krum', 'median', 'legato')


def _config(presets, setting=legato_mnist, **values):
  """Returns a setting's config with presets and the values of some keys."""
  config = setting.get_config(presets).unlock()
  # Attacks may drive the mean to NaN, which the figures show.
  config.train.on_nonfinite = 'continue'
  config.update_from_flattened_dict(values)
  return config


def get_runs(scale: str = 'mnist'):
  """Returns the configs of all runs by name.

  Args:
    scale: 'mnist' or 'cifar10'.

  Raises:
    ValueError: another scale.
  """
  if scale == 'mnist':
    return _mnist()
  if scale == 'cifar10':
    return {
      f'cifar10/fig5/{rule}': _config(f'fig5,{rule}', legato_cifar10)
      for rule in RULES
    }
  raise ValueError(f"unknown scale {scale!r}; use 'mnist' or 'cifar10'")


def _mnist():
  """Returns the runs of all figures on MNIST, in the figures' order."""
  runs = {}

  def add(figure, rules):
    for rule in rules:
      runs[f'{figure}/{rule}'] = _config(f'{figure},{rule}')

  for rule in RULES:
    runs[f'iid_none/{rule}'] = _config(rule)
  runs['fig2/none'] = _config('fedavg')
  for sigma in (1, 20, 50, 100, 200):
    runs[f'fig2/sigma={sigma}'] = _config(
      'fig2,fedavg', **{'attack.sigma': float(sigma)}
    )
  add('fig3_iid', RULES)
  add('fig3_non_iid', RULES)
  add('fig4_none', ['fedavg'])
  add('fig4_sigma200', ['fedavg'])
  add('fig5', RULES)
  for panel in ('none', 'sigma20', 'sigma100'):
    add(f'fig6_{panel}', RULES)
  for rule in ('fedavg', 'legato'):
    runs[f'fig7/{rule}, 2 convolutions'] = _config(f'fig3_iid,{rule}')
    runs[f'fig7/{rule}, 8 convolutions'] = _config(f'fig7,{rule}')
  add('fig8_none', ['legato'])
  add('fig8_sigma20', ['legato'])
  for panel in ('none', 'sigma20', 'sigma100'):
    for window in (5, 10, 15, 20, 25, 30):
      runs[f'fig9_{panel}/window={window}'] = _config(
        f'fig9_{panel},legato', **{'aggregator.window': window}
      )
  return runs
