"""Draws figures and writes tables from the finished runs of a sweep.

    python -m lca.report --workdir=runs/mine \\
      --heatmap=x:aggregator.f,y:data.alpha,panels:aggregator,value:test_accuracy
    python -m lca.report --workdir=runs/mine \\
      --table=rows:aggregator,columns:attack,value:test_accuracy
    python -m lca.report --figure=legato_5 --workdir=runs/legato
    python -m lca.report --tables --figure=lca_3 --workdir=runs/tables
    python -m lca.report --pack=legato.zip --workdir=runs/legato
    python -m lca.report --figure=legato_5 --workdir=legato.zip --output=figures
    python -m lca.report --run=runs/mine
    python -m lca.report --sweep=runs/attacks

--heatmap and --table show the runs of any sweep by keys of their configs (see
`lca.report.pivot`). --figure draws a figure of the papers, and --tables writes
the layerwise cosine paper's tables (see `lca.report.tables`). Figures are PNG,
SVG and PDF, with their numbers as Markdown, in WORKDIR/figures; tables are
Markdown, CSV and LaTeX, in WORKDIR/tables. --output names another folder.
--pack writes all finished runs into one file (see `lca.experiment.packing`),
which --workdir takes in place of a directory. --sweep in the place of --workdir
also writes web pages of the sweep and of each of its runs into the folder
DIR/report; --run writes that of one run, finished or not, into the file
DIR/report.html (see `lca.report.html`). --output names another file or folder.

The workdir is that of `lca.sweep`. If the sweep ran with a --scale other than
its default, the same --scale is needed here.
"""

import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags

from lca.experiment import command_line, extensions, packing
from lca.report import formats, heatmaps, pivot, pivot_tables, requests, tables
from lca.report.figures import FIGURES, Rows, draw
from lca.report.html import pages, sweep


def main(argv: Sequence[str]) -> None:
  """Writes and prints the reports that the flags name."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  if args.run:
    _write_run(args)
    return
  source = args.sweep or args.workdir
  reports = args.heatmap or args.table or args.figure or args.tables
  if not (reports or args.pack or args.sweep):
    sys.exit(
      'lca.report: error: nothing to report: give --heatmap, --table, '
      '--figure, --tables or --pack, or --sweep in the place of --workdir'
    )
  if (reports or args.sweep) and packing.is_packed(source) and not args.output:
    sys.exit(
      f'lca.report: error: {source} is a file, which reports cannot be written '
      'into: give --output=FOLDER'
    )
  prefix = f'{args.scale}/' if args.scale else ''
  columns = int(args.columns or 2)
  try:
    heat_maps, grids = requests.from_flags(args)
    if args.scale and not (args.figure or args.tables):
      raise ValueError('--scale applies to --figure and --tables alone')
    extensions.load_files(args.load)
    # A packed sweep is unpacked once for everything that is reported.
    with packing.opened(source) as workdir:
      output = args.output and pathlib.Path(args.output).expanduser()
      for request in heat_maps:
        folder = output or workdir / 'figures'
        filled = pivot.make(workdir, request)
        panels, notes = heatmaps.draw(filled, request, folder, columns)
        _print_figure(request.file, panels, notes, folder)
      for request in grids:
        folder = output or workdir / 'tables'
        table = pivot_tables.make(pivot.make(workdir, request), request)
        formats.write(table, folder)
        print(formats.to_markdown(table))
        print(f'wrote {folder}/{request.file}.{{md,csv,tex}}')
      if args.tables:
        for table in tables.make(workdir, prefix):
          formats.write(table, output or workdir / 'tables')
          print(formats.to_markdown(table))
        print(f'wrote {output or workdir / "tables"}')
      for name in itertools.chain.from_iterable(args.figure):
        folder = output or workdir / 'figures'
        panels = draw(name, workdir, folder, prefix, columns)
        _print_figure(name, panels, [], folder)
      if args.sweep:
        print(f'wrote {sweep.write_sweep(args.sweep, output)}')
      if args.pack:
        packed, left_out = packing.pack(workdir, args.pack)
        print(
          f'{args.pack} holds {packed} finished runs; {left_out} unfinished '
          'runs were left out'
        )
  except (ValueError, OSError) as error:
    sys.exit(f'lca.report: error: {error}')


def _print_figure(
  name: str,
  panels: Mapping[str, Rows],
  notes: Sequence[str],
  folder: pathlib.Path,
) -> None:
  """Prints the numbers of a figure and where it has been written."""
  print(f'## {name}\n')
  for title, rows in panels.items():
    print(f'{title}\n\n{formats.markdown(rows)}\n')
  for note in notes:
    print(f'{note}\n')
  print(f'wrote {folder}/{name}.{{png,svg,pdf,md}}')


def _write_run(args: flags.FlagValues) -> None:
  """Writes the page of --run, and prints where it has been written."""
  others = [
    f'--{flag.name}'
    for flag in args.get_key_flags_for_module(sys.argv[0])
    if flag.present and flag.name not in ('run', 'output', 'load')
  ]
  if others:
    sys.exit(
      f'lca.report: error: --run writes the page of a run alone: {others[0]} '
      'goes with --workdir or --sweep'
    )
  try:
    extensions.load_files(args.load)
    output = args.output and pathlib.Path(args.output).expanduser()
    page = pages.write_run(pathlib.Path(args.run).expanduser(), output)
  except (ValueError, OSError) as error:
    sys.exit(f'lca.report: error: {error}')
  print(f'wrote {page}')


if __name__ == '__main__':
  requests.define_flags()
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
  flags.DEFINE_string('run', None, 'The directory of a run to show as a page.')
  flags.DEFINE_string(
    'sweep', None, 'The directory of a sweep, or a file of --pack, for pages.'
  )
  flags.DEFINE_string(
    'pack', None, 'A zip file to write all finished runs into.'
  )
  flags.DEFINE_string('scale', None, 'Size of the sweep, if not its default.')
  flags.DEFINE_string(
    'output',
    None,
    'Folder to write to, or the file of --run; by default WORKDIR/figures, '
    'WORKDIR/tables, DIR/report and DIR/report.html.',
  )
  command_line.define_load()
  flags.adopt_module_key_flags(command_line)
  flags.adopt_module_key_flags(requests)
  flags.mark_flags_as_mutual_exclusive(
    ['workdir', 'run', 'sweep'], required=True
  )
  app.run(main)
