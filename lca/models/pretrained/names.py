"""The names that three libraries give to the tensors of an EfficientNet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class _Naming(NamedTuple):
  """The names that a library gives to the modules of an EfficientNet.

  Attributes:
    stem: the convolution and the normalisation of the stem.
    head: the convolution and the normalisation of the head.
    classifier: the output layer.
    block: maps the stage's number (from 1), the block's index in its stage, its
      index in the network, and the names of its parts to the names of its
      modules: two for each part, in the order of the parts.
  """

  stem: tuple[str, str]
  head: tuple[str, str]
  classifier: str
  block: Callable[[int, int, int, Sequence[str]], Iterator[str]]


def _torchvision_block(stage, index, _, parts):
  """Yields torchvision's names of a block's modules; see `_Naming.block`."""
  for i, part in enumerate(parts):
    for name in ('fc1', 'fc2') if part == 'squeeze' else ('0', '1'):
      yield f'features.{stage}.{index}.block.{i}.{name}'


def _timm_block(stage, index, _, parts):
  """Yields timm's names of a block's modules; see `_Naming.block`."""
  convs = ('conv_dw', 'conv_pw')
  if 'expand' in parts:
    convs = ('conv_pw', 'conv_dw', 'conv_pwl')
  pairs = zip(convs, ('bn1', 'bn2', 'bn3'), strict=False)
  for part in parts:
    squeeze = ('se.conv_reduce', 'se.conv_expand')
    for name in squeeze if part == 'squeeze' else next(pairs):
      yield f'blocks.{stage - 1}.{index}.{name}'


# The parts of a block in the network's order, each with the names of its two
# modules in efficientnet_pytorch.
_PARTS = {
  'expand': ('_expand_conv', '_bn0'),
  'depthwise': ('_depthwise_conv', '_bn1'),
  'squeeze': ('_se_reduce', '_se_expand'),
  'project': ('_project_conv', '_bn2'),
}


def _efficientnet_pytorch_block(_, __, block_idx, parts):
  """Yields efficientnet_pytorch's names of a block; see `_Naming.block`."""
  for part in parts:
    for name in _PARTS[part]:
      yield f'_blocks.{block_idx}.{name}'


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

# PyTorch's names of a module's tensors, by Flax's names.
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
  """Returns the name of the tensor that belongs to each leaf.

  Args:
    leaves: paths of leaves in the variables, beginning with the collection.
    tensors: the tensors of the file, whose names show which library wrote it.

  Returns:
    The names by leaf path.

  Raises:
    ValueError: no known library uses such names, or the model is not an
      EfficientNet.
  """
  for naming in _NAMINGS.values():
    if f'{naming.stem[0]}.weight' in tensors:
      break
  else:
    first = next(iter(sorted(tensors)), None)
    raise ValueError(
      f'its tensor names, such as {first!r}, are not those of an EfficientNet '
      f'of {sorted(_NAMINGS)}'
    )
  modules = _module_names({path[1:-1] for path in leaves}, naming)
  unknown = [path for path in leaves if path[1:-1] not in modules]
  if unknown:
    raise ValueError(
      f'{"/".join(unknown[0])} is not in an EfficientNet, and pretrained '
      'weights can be loaded into EfficientNets only'
    )
  return {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}' for path in leaves}


def _module_names(paths, naming):
  """Returns a library's names of modules.

  Args:
    paths: paths of modules in the variables, without the collection.
    naming: the names of the library.

  Returns:
    The names by path.
  """
  pair = ('conv', 'norm')
  names = {('classifier',): naming.classifier}
  for end in ('stem', 'head'):
    names |= {
      (end, kind): name
      for kind, name in zip(pair, getattr(naming, end), strict=True)
    }
  blocks = sorted({path[0] for path in paths if path[0].startswith('block')})
  for block_idx, block in enumerate(blocks):
    stage, index = map(int, block.removeprefix('block').split('_'))
    parts = [
      part
      for part in _PARTS
      if any(path[:2] == (block, part) for path in paths)
    ]
    module_paths = [
      (block, part, kind)
      for part in parts
      for kind in (('reduce', 'expand') if part == 'squeeze' else pair)
    ]
    module_names = naming.block(stage, index, block_idx, parts)
    names |= dict(zip(module_paths, module_names, strict=True))
  return names
