"""Writes tables as Markdown, CSV and LaTeX."""

import csv
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Number(NamedTuple):
  """A cell of a table: a measured number beside the one that a paper prints.

  Attributes:
    values: the measured numbers, one for each seed; empty if no run is
      finished.
    paper: the number that the paper prints; None if it prints none.
    best: True if the mean of `values` is the best, and is set in bold.
    paper_best: True if `paper` is the paper's best number, and is set in bold.
    digits: the number of digits after the decimal point.
    tied: True if the mean is not significantly worse than the best, which is
      set in italics, and underlined in LaTeX.
    note: what stands in brackets behind the number, such as an attack's name.
  """

  values: Sequence[float]
  paper: float | None = None
  best: bool = False
  paper_best: bool = False
  digits: int = 3
  tied: bool = False
  note: str = ''

  @property
  def mean(self) -> float | None:
    """The mean over the seeds; None where no run is finished."""
    return float(np.mean(self.values)) if len(self.values) else None

  @property
  def deviation(self) -> float | None:
    """The sample standard deviation over the seeds; None for a single seed."""
    several = len(self.values) > 1
    return float(np.std(self.values, ddof=1)) if several else None

  def text(
    self,
    plus_minus: str,
    bold: Callable[[str], str],
    tied: Callable[[str], str] = str,
    note: Callable[[str], str] = str,
  ) -> str:
    """Returns the cell's text, such as `0.900 ± 0.141 (0.491)`.

    Args:
      plus_minus: sign between the mean and the deviation.
      bold: sets a text in bold.
      tied: marks a text as not significantly worse than the best.
      note: escapes the special characters of a note.

    Returns:
      The mean, the deviation if there are several seeds, and in brackets the
      paper's number and the note. Numbers that are None are left out.
    """
    parts = []
    if self.mean is not None:
      ours = f'{self.mean:.{self.digits}f}'
      if self.deviation is not None:
        ours += f' {plus_minus} {self.deviation:.{self.digits}f}'
      mark = bold if self.best else tied if self.tied else str
      parts.append(mark(ours))
    if self.paper is not None:
      printed = f'{self.paper:.{self.digits}f}'
      parts.append(f'({bold(printed) if self.paper_best else printed})')
    if self.note:
      parts.append(f'({note(self.note)})')
    return ' '.join(parts)


class Table(NamedTuple):
  """A table, independent of the format it is written in.

  Attributes:
    name: the name of the table's files, without a suffix.
    title: the text above the table.
    header: the titles of the columns.
    rows: at least one row. The cells of a column are all texts or all Numbers.
    notes: paragraphs below the table; `to_csv` leaves them out.
  """

  name: str
  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str | Number]]
  notes: Sequence[str] = ()


def write(table: Table, folder: pathlib.Path) -> None:
  """Writes `NAME.md`, `NAME.csv` and `NAME.tex` into a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  formats = {'md': to_markdown, 'csv': to_csv, 'tex': to_latex}
  for suffix, convert in formats.items():
    (folder / f'{table.name}.{suffix}').write_text(convert(table))


def to_markdown(table: Table) -> str:
  """Returns the table as Markdown, with its title and notes."""
  rows = [
    [
      cell.text('±', '**{}**'.format, '*{}*'.format)
      if isinstance(cell, Number)
      else cell
      for cell in row
    ]
    for row in table.rows
  ]
  parts = [f'## {table.title}', markdown([table.header, *rows]), *table.notes]
  return '\n\n'.join(parts) + '\n'


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown of rows of text; the first is the header."""
  header, *rows = [[cell.replace('|', r'\|') for cell in row] for row in rows]
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def to_csv(table: Table) -> str:
  """Returns the table as CSV.

  A column of Numbers becomes four columns: `NAME` for the mean,
  `NAME_deviation`, `NAME_paper` and `NAME_note`. Those of the paper and of the
  notes are left out where the table has none. Missing numbers are empty
  entries.
  """
  numbers = [x for row in table.rows for x in row if isinstance(x, Number)]
  printed = any(number.paper is not None for number in numbers)
  noted = any(number.note for number in numbers)
  names = []
  for title, cell in zip(table.header, table.rows[0], strict=True):
    name = title.replace(' ', '_')
    names.append(name)
    if isinstance(cell, Number):
      names.append(f'{name}_deviation')
      names += [f'{name}_paper'] * printed + [f'{name}_note'] * noted
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(names)
  for row in table.rows:
    values = []
    for cell in row:
      if isinstance(cell, Number):
        values += [cell.mean, cell.deviation]
        values += [cell.paper] * printed + [cell.note] * noted
      else:
        values.append(cell)
    writer.writerow(values)
  return text.getvalue()


def to_latex(table: Table) -> str:
  """Returns a floating LaTeX table with the label `tab:NAME`.

  A table that is wider than a line is scaled down to it. The document needs the
  packages booktabs and graphicx.
  """
  kinds = (isinstance(cell, Number) for cell in table.rows[0])
  columns = ''.join('r' if number else 'l' for number in kinds)
  rows = [
    [
      cell.text(
        r'$\pm$', r'\textbf{{{}}}'.format, r'\underline{{{}}}'.format, _escaped
      )
      if isinstance(cell, Number)
      else _escaped(cell)
      for cell in row
    ]
    for row in (table.header, *table.rows)
  ]
  header, *body = [' & '.join(row) + r' \\' for row in rows]
  lines = [
    r'\begin{table}',
    r'\centering\footnotesize',
    rf'\caption{{{_escaped(table.title)}}}',
    rf'\label{{tab:{table.name.replace("_", "-")}}}',
    r'\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{'
    rf'\begin{{tabular}}{{{columns}}}',
    r'\toprule',
    header,
    r'\midrule',
    *body,
    r'\bottomrule',
    r'\end{tabular}}',
    *(rf'\par {_escaped(note)}' for note in table.notes),
    r'\end{table}',
  ]
  return '\n'.join(lines) + '\n'


_LATEX = {c: rf'\{c}' for c in '&%$#_{}'} | {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
}


def _escaped(text: str) -> str:
  """Returns a text in which LaTeX's special characters stand for themselves."""
  return text.translate(str.maketrans(_LATEX))


def panels_markdown(
  panels: Mapping[str, Sequence[Sequence[str]]], notes: Sequence[str] = ()
) -> str:
  """Returns the numbers of a figure's panels as a Markdown text.

  Args:
    panels: for each panel's title a header, and the rows below it.
    notes: sentences that stand below all panels.
  """
  parts = [f'### {title}\n\n{markdown(rows)}' for title, rows in panels.items()]
  return '\n\n'.join([*parts, *notes]) + '\n'
