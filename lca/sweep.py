"""The command `python -m lca.sweep`, implemented in `lca.experiment.sweep`."""

from absl import app, flags

from lca.experiment import command_line, sweep

if __name__ == '__main__':
  sweep.define_flags()
  # The command's --help lists the flags of these modules.
  flags.adopt_module_key_flags(sweep)
  flags.adopt_module_key_flags(command_line)
  app.run(sweep.main)
