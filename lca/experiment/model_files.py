"""The files that runs keep their models in.

A file of the format safetensors holds the variables of one model by name, such
as `params/Conv_0/kernel`. Its metadata have one entry, `lca`, a JSON object:

round       the round after which the model was taken, counted from 1
chosen_by   the metric that the round was chosen by; '' for the last round
note        the two above as a sentence
inputs      shape and dtype of one input
num_classes, mean, std, resize, crop
            the rest of what `lca.models.Classifier` needs to use the model
checksum    CRC-32 of all the above, and of all arrays with their names
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from lca.models import Classifier
from lca.stacked.trees import layer_names
from lca.typing import PyTree

FINAL, BEST = 'model.safetensors', 'best.safetensors'
"""The files of a run's directory that hold a model."""


def to_bytes(
  variables: PyTree,
  classifier: Classifier,
  input_spec: jax.ShapeDtypeStruct,
  num_classes: int,
  round_number: int,
  chosen_by: str = '',
) -> bytes:
  """Returns the content of a file that holds a model.

  The same arguments give the same bytes.

  Args:
    variables: of the model, NumPy arrays.
    classifier: the model, and how its inputs are prepared.
    input_spec: shape and dtype of one input.
    num_classes: number of classes of the data.
    round_number: the round after which the model was taken, from 1.
    chosen_by: the metric that this round was chosen by; '' for the last round.
  """
  tensors = {
    name: np.asarray(leaf, order='C')  # safetensors ignores strides
    for name, leaf in named(variables).items()
  }

  def numbers(values):
    return None if values is None else [float(x) for x in values]

  about = {
    'round': round_number,
    'chosen_by': chosen_by,
    'note': _note(round_number, chosen_by),
    'inputs': {
      'shape': list(input_spec.shape),
      'dtype': str(input_spec.dtype),
    },
    'num_classes': num_classes,
    'mean': numbers(classifier.mean),
    'std': numbers(classifier.std),
    'resize': classifier.resize,
    'crop': classifier.crop,
  }
  about['checksum'] = _checksum(tensors, about)
  # The library writes several entries of metadata in a random order.
  return safetensors.numpy.save(tensors, {'lca': json.dumps(about)})


def _note(round_number: int, chosen_by: str) -> str:
  """Returns a sentence that says which model a file holds."""
  if not chosen_by:
    return f'the model after the last round, {round_number}'
  note = (
    f'the model after round {round_number}, the first one with the best '
    f'{chosen_by}; it was chosen on '
  )
  if chosen_by.startswith('test'):
    return f'{note}the test data, so that its test metrics are optimistic'
  return f'{note}validation data, and not on the test data'


def read(file: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads a model.

  Returns:
    The arrays by name, and the entry `lca` of the metadata.

  Raises:
    Exception: the file is damaged, or has no such entry; several libraries'
      errors may arrive here.
  """
  with safetensors.safe_open(file, 'np') as opened:
    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    about = json.loads(opened.metadata()['lca'])
  if about.pop('checksum') != _checksum(tensors, about):
    raise ValueError('its checksum is wrong')
  return tensors, about


def named(variables: PyTree) -> dict[str, Any]:
  """Returns the leaves of a model's variables by name, in their order."""
  return dict(
    zip(layer_names(variables), jax.tree.leaves(variables), strict=True)
  )


def _checksum(
  tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> int:
  """Returns a CRC-32 of what a file holds, whatever the order of its arrays."""
  total = zlib.crc32(json.dumps(about).encode())
  for name in sorted(tensors):
    total = zlib.crc32(name.encode(), total)
    total = zlib.crc32(tensors[name].tobytes(), total)
  return total
