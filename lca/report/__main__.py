"""Draws the papers' figures and tables from the finished runs of a sweep.

    python -m lca.report --figure=legato_5 --workdir=runs/legato
    python -m lca.report --tables --figure=lca_3 --workdir=runs/tables
    python -m lca.report --pack=legato.zip --workdir=runs/legato
    python -m lca.report --figure=legato_5 --workdir=legato.zip --output=figures

--figure draws figures as PNG and SVG, with their numbers as Markdown, into
WORKDIR/figures. --tables writes the tables (see `lca.report.tables`) as
Markdown, CSV and LaTeX into WORKDIR/tables. --output names another folder.
--pack writes all finished runs into one file (see `lca.experiment.packing`),
which --workdir takes in place of a directory.

The workdir is that of `lca.sweep`. If the sweep ran with a --scale other than
its default, the same --scale is needed here.
"""

import itertools
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from lca.experiment import command_line, extensions, packing
from lca.report import formats, tables
from lca.report.figures import FIGURES, draw


def main(argv: Sequence[str]) -> None:
  """Writes and prints the reports that the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  reports = args.figure or args.tables
  if not (reports or args.pack):
    sys.exit(
      'lca.report: error: nothing to report: give --figure, --tables or --pack'
    )
  if reports and packing.is_packed(args.workdir) and not args.output:
    sys.exit(
      f'lca.report: error: {args.workdir} is a file, which figures and tables '
      'cannot be written into: give --output=FOLDER'
    )
  prefix = f'{args.scale}/' if args.scale else ''
  try:
    extensions.load_files(args.load)
    # A packed sweep is unpacked once for everything that is reported.
    with packing.opened(args.workdir) as workdir:
      output = args.output and pathlib.Path(args.output).expanduser()
      if args.tables:
        for table in tables.make(workdir, prefix):
          formats.write(table, output or workdir / 'tables')
          print(formats.to_markdown(table))
        print(f'wrote {output or workdir / "tables"}')
      for name in itertools.chain.from_iterable(args.figure):
        panels = draw(name, workdir, output or workdir / 'figures', prefix)
        print(f'## {name}\n')
        for title, rows in panels.items():
          print(f'{title}\n\n{formats.markdown(rows)}\n')
        print(f'wrote {output or workdir / "figures"}/{name}.{{png,svg,md}}')
      if args.pack:
        packed, left_out = packing.pack(workdir, args.pack)
        print(
          f'{args.pack} holds {packed} finished runs; {left_out} unfinished '
          'runs were left out'
        )
  except (ValueError, OSError) as error:
    sys.exit(f'lca.report: error: {error}')


if __name__ == '__main__':
  command_line.define_list(
    'figure',
    [],
    f'Figures to draw: {", ".join(FIGURES)}, and those that --load adds.',
  )
  flags.DEFINE_bool(
    'tables', False, "Write the layerwise cosine paper's tables."
  )
  flags.DEFINE_string(
    'workdir', None, 'The directory of a sweep, or a file of --pack.'
  )
  flags.DEFINE_string(
    'pack', None, 'A zip file to write all finished runs into.'
  )
  flags.DEFINE_string('scale', None, 'Size of the sweep, if not its default.')
  flags.DEFINE_string(
    'output',
    None,
    'Folder to write to; by default WORKDIR/figures and WORKDIR/tables.',
  )
  command_line.define_load()
  flags.adopt_module_key_flags(command_line)
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
