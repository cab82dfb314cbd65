"""Base classes of builders that read published archives."""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lca.data import cache
from lca.data.archives import Archives
from lca.data.dataset import Split


class FromArchives(abc.ABC):
  """A mixin for TFDS builders that verifies archives before it reads them.

  The archives are read from the folder `DownloadConfig.manual_dir`, or are
  downloaded if `manual_dir` is None. A builder lists this class before the TFDS
  builder among its bases, because this class overrides `download_and_prepare`.
  """

  ARCHIVES: ClassVar[Archives]
  CLASSES: ClassVar[Sequence[str]]
  DESCRIPTION: ClassVar[str]
  HOMEPAGE: ClassVar[str]
  CITATION: ClassVar[str]
  _manual_paths: Mapping[str, Path] | None = None

  @abc.abstractmethod
  def _features(self) -> dict[str, Any]:
    """Returns the TFDS features of an example, without its label, by name."""

  def _info(self):
    label = tfds.features.ClassLabel(names=list(self.CLASSES))
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.DESCRIPTION,
      features=tfds.features.FeaturesDict({**self._features(), 'label': label}),
      supervised_keys=('image', 'label'),
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      disable_shuffling=True,
    )

  def download_and_prepare(self, *, download_config=None, **kwargs) -> None:
    """Prepares the data set unless it is prepared already.

    Args:
      download_config: a `tfds.download.DownloadConfig`.
      **kwargs: other arguments of the method of TFDS.

    Raises:
      FileNotFoundError: an archive is missing in `manual_dir`.
      ValueError: an archive is damaged, or is not the published one.
      ConnectionError: an archive cannot be downloaded.
    """
    config = download_config or tfds.download.DownloadConfig()
    if not self.data_path.exists():
      if config.manual_dir is None:
        self.ARCHIVES.probe()
      else:
        self._manual_paths = self.ARCHIVES.find(config.manual_dir)
    path = Path(self.data_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # TFDS writes to a folder incomplete.RANDOM_VERSION and renames it.
    with cache.clearing(path.parent, f'incomplete.*_{path.name}'):
      super().download_and_prepare(download_config=config, **kwargs)

  def _paths(self, dl_manager) -> Mapping[str, Path]:
    """Returns the paths of the verified archives, by file name."""
    if self._manual_paths is not None:
      return self._manual_paths
    with self.ARCHIVES.downloading(', '.join(self.ARCHIVES.urls)):
      downloaded = dl_manager.download(self.ARCHIVES.urls)
    paths = {name: Path(path) for name, path in downloaded.items()}
    for name, path in paths.items():
      self.ARCHIVES.verify(name, path)
    return paths


class ArchiveBuilder(
  FromArchives, tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A builder of data sets whose splits fit into memory.

  A subclass sets the constants of `FromArchives` and implements `_features` and
  `_splits`.
  """

  def _split_generators(self, dl_manager):
    """Returns the generators of examples, by split, as TFDS asks for them."""
    splits = self._splits(self._paths(dl_manager))
    return {k: self._generate_examples(v) for k, v in splits.items()}

  @abc.abstractmethod
  def _splits(self, paths: Mapping[str, Path]) -> Mapping[str, Split]:
    """Reads the splits.

    Args:
      paths: the path of each archive, by file name.

    Returns:
      The splits by name: `train` and `test`.
    """

  def _checked(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    owners: np.ndarray | None = None,
  ) -> Split:
    """Returns a split of the arrays after checking them.

    Raises:
      ValueError: the arrays are not those of images, labels and owners of this
        data set.
    """
    split = Split(images, labels, owners)
    shape = self.info.features['image'].shape
    if images.shape[1:] != shape:
      raise ValueError(
        f'images must be {shape}, not {images.shape[1:]}: got {images.dtype} '
        f'{list(images.shape)}'
      )
    low, high = labels.min(), labels.max()
    if low < 0 or high >= len(self.CLASSES):
      raise ValueError(
        f'labels must lie in [0, {len(self.CLASSES)}), got labels from {low} '
        f'to {high}'
      )
    return split

  def _generate_examples(self, split):
    for i in range(len(split)):
      example = {'image': split.inputs[i], 'label': int(split.labels[i])}
      if split.owners is not None:
        example['owner'] = int(split.owners[i])
      yield i, example
