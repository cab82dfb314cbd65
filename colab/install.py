"""Installs the packages of requirements.txt that are missing.

The set-up cell of each notebook runs this file. Packages that are installed in
a version that the requirements allow stay as they are, and so does JAX: Colab's
own JAX fits the TPU or GPU of its runtime.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).parents[1] / 'requirements.txt'


def missing(lines: Iterable[str]) -> list[str]:
  """Returns the requirements that no installed package satisfies.

  Args:
    lines: of a requirements file. Comments and empty lines are skipped.

  Examples:
    >>> missing(['# arrays', '', 'numpy  # any', 'numpy>=1000', 'nosuch'])
    ['numpy>=1000', 'nosuch']
  """
  requirements = [line.partition('#')[0].strip() for line in lines]
  return [each for each in requirements if each and not _is_installed(each)]


def _is_installed(requirement: str) -> bool:
  wanted = Requirement(requirement)
  try:
    version = metadata.version(wanted.name)
  except metadata.PackageNotFoundError:
    return False
  return wanted.specifier.contains(version, prereleases=True)


def pip_arguments(packages: Iterable[str]) -> list[str]:
  """Returns pip's arguments, which install packages and hold JAX as it is.

  Args:
    packages: requirements that are missing.
  """
  packages = list(packages)
  names = {Requirement(package).name for package in packages}
  # Without the pin, pip would upgrade JAX for a package that asks for a newer.
  held = [] if 'jax' in names else [f'jax=={metadata.version("jax")}']
  return ['install', '--quiet', *packages, *held]


def main() -> None:
  """Installs what is missing, so that this Python process can import it."""
  packages = missing(REQUIREMENTS.read_text().splitlines())
  if packages:
    print('installing', *packages)
    command = [sys.executable, '-m', 'pip', *pip_arguments(packages)]
    subprocess.run(command, check=True)
    importlib.invalidate_caches()


if __name__ == '__main__':
  main()
