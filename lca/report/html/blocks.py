"""The parts of a page. `templates/blocks.html` says how each one looks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup


class Chart(NamedTuple):
  """A chart with a title above it and a sentence below.

  Attributes:
    title: a few words.
    svg: the drawing; see `lca.report.html.charts.to_svg`.
    caption: what each mark and colour stands for.
    width: of the page: 'third', 'half' or 'full'. On a narrow screen each
      chart has a line of its own, and a full one scrolls sideways.
  """

  title: str
  svg: Markup
  caption: str
  width: str = 'third'


class Link(NamedTuple):
  """A cell of a table that leads to another page.

  Attributes:
    text: of the link.
    href: address relative to the page.
  """

  text: str
  href: str


class Table(NamedTuple):
  """A table, whose first column names its rows.

  Attributes:
    title: a few words.
    header: the titles of the columns.
    rows: texts or `Link`s, as many in each row as in the header.
    numeric: the positions of the columns of numbers, which are aligned right.
    sortable: True for a table that a script can sort and filter.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Any]]
  numeric: Sequence[int] = ()
  sortable: bool = False


class Details(NamedTuple):
  """Tables that are hidden until a reader opens them.

  Attributes:
    summary: the line that is always there.
    tables: what it hides.
  """

  summary: str
  tables: Sequence[Table]


class Section(NamedTuple):
  """A section of a page.

  Attributes:
    title: the heading, unique on the page.
    text: a sentence on what is shown, or, without content, on how to get it.
    content: from top to bottom; a section without content is listed at the
      page's end.
  """

  title: str
  text: str
  content: Sequence[Chart | Table | Details] = ()

  @property
  def anchor(self) -> str:
    """The section's id on the page."""
    return self.title.lower().replace(' ', '-')
