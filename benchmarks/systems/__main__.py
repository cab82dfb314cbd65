"""Times a federated round in several systems, side by side.

    python -m benchmarks.systems --environments=FOLDER --archive_dir=DATA \
      --output=systems.json

The round is one of the layerwise cosine paper's: its CNN (1,625,866
parameters), real Fashion-MNIST, 20 clients with 300 examples each, one local
epoch of Adam in batches of 64, and the mean or Krum. Every system starts from
the same weights and has the same clients.

Each system runs in a process and a virtual environment of its own. The
environments are made in FOLDER at the first call, with the Python that runs
this command; some systems need 3.11 or 3.12. In a sitting every system runs
each rule once, taking turns. Other programs slow some systems more than others:
PyTorch on two cores of which one is busy is slower than on one. So each run
records how many cores others kept busy, and the table leaves out disturbed runs
where it can. `--output` is continued if it holds a record of the same settings:
sittings may be several calls.
"""

import json
import pathlib
import tempfile

from absl import app, flags

from benchmarks import record
from benchmarks.systems import catalogue, running, table, tasks

_ENVIRONMENTS = flags.DEFINE_string(
  'environments', None, "The folder of the systems' environments."
)
_ARCHIVE_DIR = flags.DEFINE_string(
  'archive_dir', None, "The folder of Fashion-MNIST's four idx .gz files."
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, "The folder of prepared data, by default the user's."
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_ONLY = flags.DEFINE_list(
  'only', list(catalogue.SYSTEMS), 'The systems to run.'
)
_RULES = flags.DEFINE_multi_enum(
  'rules', list(catalogue.RULES), catalogue.RULES, 'The rules to run.'
)
_PATIENCE = flags.DEFINE_float(
  'patience', 0, 'Seconds to wait before a run until the machine is quiet.'
)
_SITTINGS = flags.DEFINE_integer('sittings', 1, 'How often all take turns.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', 3, 'Rounds of a run; the first one counts apart.', lower_bound=2
)
_CLIENTS = flags.DEFINE_integer('clients', 20, 'Clients of a round.')
_EXAMPLES = flags.DEFINE_integer('examples', 300, 'Examples of a client.')
_F = flags.DEFINE_integer('f', 4, "Krum's f.")


def continued(path: str | None, settings: dict) -> dict:
  """Returns the record in a file, or a new one.

  Raises:
    ValueError: the file has a record with other settings.
  """
  if path is None or not pathlib.Path(path).exists():
    about = record.environment(with_others=False)
    return {'environment': about, 'settings': settings, 'runs': []}
  old = json.loads(pathlib.Path(path).read_text())
  if old['settings'] != settings:
    raise ValueError(
      f'{path} holds a record with the settings {old["settings"]}, not '
      f'{settings}: choose another --output'
    )
  return old


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  if unknown := set(_ONLY.value) - catalogue.SYSTEMS.keys():
    raise app.UsageError(f'--only names unknown systems {sorted(unknown)}')
  if _ENVIRONMENTS.value is None:
    raise app.UsageError('--environments=FOLDER is needed')
  folder = pathlib.Path(_ENVIRONMENTS.value).resolve()
  settings = {
    'clients': _CLIENTS.value,
    'examples': _EXAMPLES.value,
    'rounds': _ROUNDS.value,
    'f': _F.value,
  }
  measured = continued(_OUTPUT.value, settings)
  pythons, failures = {}, {}
  for name in _ONLY.value:
    try:
      pythons[name] = running.python_of(catalogue.SYSTEMS[name], folder)
    except running.Failure as failure:
      failures[name] = str(failure)
  first = 1 + max((run['sitting'] for run in measured['runs']), default=0)
  with tempfile.TemporaryDirectory() as temporary:
    task = pathlib.Path(temporary) / 'task.npz'
    made = tasks.fashion_mnist(_ARCHIVE_DIR.value, _DATA_DIR.value, **settings)
    made.save(task)
    for sitting in range(first, first + _SITTINGS.value):
      for rule in _RULES.value:
        for name in _ONLY.value:
          run = {
            'sitting': sitting,
            'system': name,
            'rule': rule,
          }
          try:
            if name in failures:
              raise running.Failure(failures[name])
            system = catalogue.SYSTEMS[name]
            running.wait_until_quiet(_PATIENCE.value)
            run |= running.run(system, pythons[name], task, rule)
          except running.Failure as failure:
            run['failure'] = str(failure)
          measured['runs'].append(run)
          seconds = [round(x['total'], 2) for x in run.get('rounds', [])]
          print(
            f'{name:14} {rule:7} {run.get("failure", seconds)}, others '
            f'{run.get("elsewhere", 0):.2f} cores',
            flush=True,
          )
          if _OUTPUT.value:
            text = json.dumps(measured, indent=1) + '\n'
            pathlib.Path(_OUTPUT.value).write_text(text)
  print(table.markdown(measured))


if __name__ == '__main__':
  app.run(main)
