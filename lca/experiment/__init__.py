"""Experiments: runs of a config or of your own objects, and their directories.

    train_and_evaluate(config, workdir)   # run a config
    simulate(dataset, model, rule, ...)   # run your own data, model and rule
    load_run(workdir)                     # load the model of a finished run

The names below are imported when they are first used, so that a program that
only reads the directories of runs does not import the trainer.
"""

from typing import Any

from lca.registry import import_module

# The module of each public name.
_HOMES = {
  'CheckpointError': 'checkpoints',
  'Experiment': 'train',
  'LoadedRun': 'trained',
  'Result': 'simulator',
  'load_run': 'trained',
  'run': 'train',
  'set_up': 'train',
  'simulate': 'simulator',
  'train_and_evaluate': 'train',
}

__all__ = [
  'CheckpointError',
  'Experiment',
  'LoadedRun',
  'Result',
  'load_run',
  'run',
  'set_up',
  'simulate',
  'train_and_evaluate',
]


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
