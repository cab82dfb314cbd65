"""The version of lca, at its only place.

`pyproject.toml` reads the number from here without importing anything, and so
does `lca.__version__`, which therefore also works in a checkout that was never
installed.
"""

__version__ = '0.1.0'
