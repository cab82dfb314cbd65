"""The environment that a run records: versions, devices, commit."""

import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

from lca.version import __version__

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def describe() -> dict[str, Any]:
  """Returns versions, devices and commit, as JSON can hold them.

  The commit is that of this package's git checkout, with `-dirty` appended if
  files differ from it. It is None if the package lies outside of a checkout.
  """
  root = pathlib.Path(__file__).resolve().parents[2]
  # Without --git-dir, git would also search the folders above, and find the
  # checkout of another project that the package is installed in.
  git = ['git', f'--git-dir={root / ".git"}', f'--work-tree={root}']
  git += ['describe', '--always', '--dirty', '--abbrev=40']
  try:
    done = subprocess.run(git, capture_output=True, text=True, check=True)
    commit = done.stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    commit = None
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': {
      'lca': __version__,
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    'devices': [str(d) for d in jax.devices()],
    'device_kind': jax.devices()[0].device_kind,
    'commit': commit,
  }
