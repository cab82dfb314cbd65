"""The command `python -m lca.sweep`, implemented in `lca.experiment.sweep`."""

from lca.experiment import sweep

if __name__ == '__main__':
  sweep.run_command()
