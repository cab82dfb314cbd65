"""Names that three libraries give the tensors of an EfficientNet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class _Naming(NamedTuple):
  """Names that a library gives a network's modules.

  Attributes:
    stem: convolution and normalisation.
    head: the same.
    classifier: the output layer.
    block: from stage (from 1), index in it, index in the network, and the
      block's parts, to two names for each part.
  """

  stem: tuple[str, str]
  head: tuple[str, str]
  classifier: str
  block: Callable[[int, int, int, Sequence[str]], Iterator[str]]


def _torchvision_block(stage, index, _, parts):
  for i, part in enumerate(parts):
    for name in ('fc1', 'fc2') if part == 'squeeze' else ('0', '1'):
      yield f'features.{stage}.{index}.block.{i}.{name}'


def _timm_block(stage, index, _, parts):
  convs = ('conv_dw', 'conv_pw')
  if 'expand' in parts:
    convs = ('conv_pw', 'conv_dw', 'conv_pwl')
  pairs = zip(convs, ('bn1', 'bn2', 'bn3'), strict=False)
  for part in parts:
    squeeze = ('se.conv_reduce', 'se.conv_expand')
    for name in squeeze if part == 'squeeze' else next(pairs):
      yield f'blocks.{stage - 1}.{index}.{name}'


_OF_PARTS = {
  'expand': ('_expand_conv', '_bn0'),
  'depthwise': ('_depthwise_conv', '_bn1'),
  'squeeze': ('_se_reduce', '_se_expand'),
  'project': ('_project_conv', '_bn2'),
}


def _efficientnet_pytorch_block(_, __, place, parts):
  for part in parts:
    for name in _OF_PARTS[part]:
      yield f'_blocks.{place}.{name}'


_NAMINGS = {
  'torchvision': _Naming(
    stem=('features.0.0', 'features.0.1'),
    head=('features.8.0', 'features.8.1'),
    classifier='classifier.1',
    block=_torchvision_block,
  ),
  'timm': _Naming(
    stem=('conv_stem', 'bn1'),
    head=('conv_head', 'bn2'),
    classifier='classifier',
    block=_timm_block,
  ),
  'efficientnet_pytorch': _Naming(
    stem=('_conv_stem', '_bn0'),
    head=('_conv_head', '_bn1'),
    classifier='_fc',
    block=_efficientnet_pytorch_block,
  ),
}

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def names_of(
  leaves: Iterable[tuple[str, ...]], tensors: Mapping[str, Any]
) -> dict[tuple[str, ...], str]:
  """Returns the name of every leaf's tensor.

  Args:
    leaves: paths in the variables, from the collection on.
    tensors: those of the file, whose names tell the library.

  Raises:
    ValueError: the names are of no known library, or the model is no
      EfficientNet.
  """
  for naming in _NAMINGS.values():
    if f'{naming.stem[0]}.weight' in tensors:
      break
  else:
    first = next(iter(sorted(tensors)), None)
    raise ValueError(
      f'its names, such as {first!r}, are not those of {sorted(_NAMINGS)}'
    )
  modules = _module_names({path[1:-1] for path in leaves}, naming)
  unknown = [path for path in leaves if path[1:-1] not in modules]
  if unknown:
    raise ValueError(f'no EfficientNet has {"/".join(unknown[0])}')
  return {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}' for path in leaves}


def _module_names(paths, naming):
  """From the paths of modules, without their collection, to names."""
  pair = ('conv', 'norm')
  names = {('classifier',): naming.classifier}
  for end in ('stem', 'head'):
    names |= {
      (end, kind): name
      for kind, name in zip(pair, getattr(naming, end), strict=True)
    }
  blocks = sorted({path[0] for path in paths if path[0].startswith('block')})
  for place, block in enumerate(blocks):
    stage, index = map(int, block.removeprefix('block').split('_'))
    parts = [
      part
      for part in _OF_PARTS  # which stand in the network's order
      if any(path[:2] == (block, part) for path in paths)
    ]
    ours = [
      (block, part, kind)
      for part in parts
      for kind in (('reduce', 'expand') if part == 'squeeze' else pair)
    ]
    theirs = naming.block(stage, index, place, parts)
    names |= dict(zip(ours, theirs, strict=True))
  return names
