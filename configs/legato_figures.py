"""The runs behind the LEGATO paper's figures (see configs/legato_mnist.py).

    python -m lca.sweep --config=configs/legato_figures.py --workdir=runs/legato
    python -m lca.report --figure=legato_5 --workdir=runs/legato

There are 51 different runs a seed, of which two take eleven minutes on two CPU
cores with --jobs=2; Fig. 7's deep networks take half an hour. With
--set=data.name=fashion_mnist they run where MNIST cannot be had.

`iid_none` is no figure of the paper's: the four rules on IID data without an
attack, which its section V compares in words.

With --scale=cifar10, of both commands, come the runs of Fig. 5's other half.
"""

from configs import legato_cifar10, legato_mnist

RULES = ('fedavg', 'krum', 'median', 'legato')


def _config(presets, setting=legato_mnist, **values):
  config = setting.get_config(presets).unlock()
  config.train.on_nonfinite = 'continue'  # the mean may break: that is shown
  config.update_from_flattened_dict(values)
  return config


def get_runs(scale: str = 'mnist'):
  if scale == 'mnist':
    return _mnist()
  if scale == 'cifar10':
    return {
      f'cifar10/fig5/{rule}': _config(f'fig5,{rule}', legato_cifar10)
      for rule in RULES
    }
  raise ValueError(f'unknown scale {scale!r}; there are mnist and cifar10')


def _mnist():
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
