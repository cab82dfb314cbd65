"""Experiments: from a config, or from parts, to a run and its directory.

    train_and_evaluate(config, workdir)   # a config
    simulate(dataset, model, rule, ...)   # one's own objects

What is named here is imported when it is first asked for: reading a run's
directory imports no trainer.
"""

import importlib
from typing import Any

_HOMES = {
  'Result': 'simulator',
  'run': 'train',
  'set_up': 'train',
  'simulate': 'simulator',
  'train_and_evaluate': 'train',
}

__all__ = ['Result', 'run', 'set_up', 'simulate', 'train_and_evaluate']


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
