"""Builders of data sets from archives, of a folder or of the internet."""

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
  """A builder whose archives are verified before anything is written.

  `DownloadConfig.manual_dir` names the folder that holds them; without it they
  are downloaded. It comes before the TFDS builder among a class's bases.
  """

  ARCHIVES: ClassVar[Archives]
  CLASSES: ClassVar[Sequence[str]]
  DESCRIPTION: ClassVar[str]
  HOMEPAGE: ClassVar[str]
  CITATION: ClassVar[str]
  _manual_paths: Mapping[str, Path] | None = None

  @abc.abstractmethod
  def _features(self) -> dict[str, Any]:
    """Returns the features of an example but for its label, by name."""

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
      download_config: A `tfds.download.DownloadConfig`.
      **kwargs: As in TFDS.

    Raises:
      FileNotFoundError: `manual_dir` lacks an archive.
      ValueError: An archive is damaged or is not the published one.
      ConnectionError: The archives cannot be downloaded.
    """
    config = download_config or tfds.download.DownloadConfig()
    if not self.data_path.exists():
      if config.manual_dir is None:
        self.ARCHIVES.probe()
      else:
        self._manual_paths = self.ARCHIVES.find(config.manual_dir)
    path = Path(self.data_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As TFDS names the folder that it writes to.
    with cache.clearing(path.parent, f'incomplete.*_{path.name}'):
      super().download_and_prepare(download_config=config, **kwargs)

  def _paths(self, dl_manager) -> Mapping[str, Path]:
    """Returns the verified archives' paths, by name."""
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
  """A builder of splits that fit into memory.

  A subclass sets the constants and implements `_features` and `_splits`.
  """

  def _split_generators(self, dl_manager):
    splits = self._splits(self._paths(dl_manager))
    return {k: self._generate_examples(v) for k, v in splits.items()}

  @abc.abstractmethod
  def _splits(self, paths: Mapping[str, Path]) -> Mapping[str, Split]:
    """Returns the splits, by name, from the archives' paths, by name."""

  def _checked(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    owners: np.ndarray | None = None,
  ) -> Split:
    """Returns the arrays as a split of this data set, or a ValueError."""
    split = Split(images, labels, owners)
    shape = self.info.features['image'].shape
    if images.shape[1:] != shape:
      raise ValueError(
        f'images of {images.shape[1:]}, not {shape}: got {images.dtype} '
        f'{list(images.shape)}'
      )
    low, high = labels.min(), labels.max()
    if low < 0 or high >= len(self.CLASSES):
      raise ValueError(
        f'labels from {low} to {high}, not in [0, {len(self.CLASSES)})'
      )
    return split

  def _generate_examples(self, split):
    for i in range(len(split)):
      example = {'image': split.inputs[i], 'label': int(split.labels[i])}
      if split.owners is not None:
        example['owner'] = int(split.owners[i])
      yield i, example
