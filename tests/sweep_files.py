"""Writes the files that a sweep leaves behind, without training."""

import json


def write_run(
  workdir, name, config=None, columns=None, summary=None, finished=True
):
  """Writes a run and its entry in the sweep's index.

  Args:
    workdir: directory of the sweep.
    name: of the run; the part after the last slash is its seed.
    config: values by dotted key. The rule is `krum` unless they say otherwise.
    columns: of metrics.csv, lists by name without `round`.
    summary: entries of summary.json.
    finished: if False there is no summary.json.

  Returns:
    The directory of the run.
  """
  index = workdir / 'sweep.json'
  names = json.loads(index.read_text()) if index.exists() else {}
  place = workdir / f'{len(names):016x}'
  index.write_text(json.dumps(names | {name: place.name}))
  place.mkdir()
  values = {'aggregator.name': 'krum', 'attack.name': 'none'} | (config or {})
  values['seed'] = int(name.rpartition('/')[2])
  nested = {}
  for key, value in values.items():
    *path, last = key.split('.')
    section = nested
    for part in path:
      section = section.setdefault(part, {})
    section[last] = value
  about = {'config': nested, 'environments': []}
  (place / 'config.json').write_text(json.dumps(about))
  columns = columns or {'test_accuracy': [0.5]}
  rounds = range(1, len(next(iter(columns.values()))) + 1)
  columns = {'round': rounds} | columns
  rows = [columns, *zip(*columns.values(), strict=True)]
  (place / 'metrics.csv').write_text(
    ''.join(f'{",".join(map(str, row))}\n' for row in rows)
  )
  if finished:
    (place / 'summary.json').write_text(json.dumps(summary or {}))
  return place
