"""The sections of a run's page, in the order of the page.

A section is a function of the run. It returns a `Section`, or None if it does
not concern this run. `SECTIONS.register` adds one, also from a file that
`python -m lca.report --load=FILE` names (see docs/reports.md).
"""

from collections.abc import Callable

from lca.registry import Registry
from lca.report.html.blocks import Section
from lca.report.html.run import Run
from lca.report.html.sections.clients import clients
from lca.report.html.sections.forensics import forensics
from lca.report.html.sections.settings import config, environment
from lca.report.html.sections.training import predictions, training

SECTIONS: Registry[Callable[[Run], Section | None]] = Registry(
  'section',
  [training, predictions, clients, forensics, config, environment],
  brought=['run'],
)
"""The sections by name."""
