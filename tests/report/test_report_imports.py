"""Reports read runs without what makes them."""

import subprocess
import sys

import processes

CODE = """
import sys
import lca.report.__main__
makers = ('lca.experiment.train', 'lca.experiment.sweep', 'lca.federated',
          'lca.data', 'orbax')
print([name for name in makers if name in sys.modules])
"""


def test_a_report_imports_no_trainer():
  done = subprocess.run(
    [sys.executable, '-c', CODE],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.stdout == '[]\n', done.stderr
