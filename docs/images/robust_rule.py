"""Draws the picture of the README from the rules and three real runs.

    PYTHONPATH=. python docs/images/robust_rule.py

Left, updates of two parameters with what three rules make of them. Right, the
digits with 15 of 20 clients a round, one of whom replaces the model. It takes a
minute on two cores, and writes robust_rule.png beside this file.
"""

import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

import lca
from configs import digits
from lca.experiment import settings, train

# Okabe and Ito's palette, which the colour-blind tell apart.
HONEST, ATTACKER, MEAN, ROBUST = '#0072B2', '#D55E00', '#000000', '#009E73'
RUNS = {
  'mean, no attack': ('fedavg', MEAN, ':'),
  'mean, attacked': ('fedavg,model_replacement', MEAN, '-'),
  'layerwise cosine Krum, attacked': (
    'layerwise_cosine_krum,model_replacement',
    ROBUST,
    '-',
  ),
}


def draw_updates(axes):
  """Draws 12 honest updates, 3 attackers', and the rules' aggregates."""
  rng = np.random.default_rng(1)
  honest = np.array([1.0, 0.6]) + 0.25 * rng.normal(size=(12, 2))
  attackers = np.array([-3.2, -1.6]) + 0.1 * rng.normal(size=(3, 2))
  updates = np.concatenate([honest, attackers]).astype(np.float32)
  axes.scatter(*honest.T, color=HONEST, label='honest update')
  axes.scatter(*attackers.T, color=ATTACKER, marker='x', label='attacker')
  for name, rule, colour, marker in (
    ('mean', lca.mean, MEAN, 's'),
    ('Krum', lambda x: lca.krum(x, f=3), ROBUST, '*'),
    ('median', lca.median, ROBUST, 'D'),
  ):
    axes.scatter(
      *np.asarray(rule(updates)),
      s=140 if marker == '*' else 60,
      marker=marker,
      facecolor='none' if marker == 'D' else colour,
      edgecolor=colour,
      label=name,
      zorder=3,
    )
  axes.axhline(0, color='0.85', zorder=0)
  axes.axvline(0, color='0.85', zorder=0)
  axes.set(
    title='3 of 15 clients lie', xlabel='parameter 1', ylabel='parameter 2'
  )
  axes.legend(loc='upper left', frameon=False)


def accuracies(presets):
  """Returns the test accuracy after each round of the digits."""
  run = settings.from_config(digits.get_config(presets))
  _, rows = train.run_rounds(train.prepare(run, workdir=None))
  return [row['test_accuracy'] for row in rows]


def draw_runs(axes):
  """Draws the test accuracy of the runs, round by round."""
  for name, (presets, colour, style) in RUNS.items():
    found = accuracies(presets)
    axes.plot(range(1, len(found) + 1), found, style, color=colour, label=name)
    print(f'{name}: {found[-1]:.3f}')
  axes.set(
    title='1 of 15 clients replaces the model',
    xlabel='round',
    ylabel='test accuracy',
    ylim=(0, 1),
    xticks=range(0, 21, 5),
  )
  axes.legend(loc='lower right', frameon=False)


def main():
  jax.config.update('jax_num_cpu_devices', 2)
  figure = Figure(figsize=(10, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  draw_updates(left)
  draw_runs(right)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(pathlib.Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
  main()
