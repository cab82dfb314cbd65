"""What our builders share: archives from a folder or from the internet."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from lca.data.archives import Archives


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder whose archives are verified before anything is written.

  `DownloadConfig.manual_dir` names the folder that holds them; without it they
  are downloaded. A subclass sets `ARCHIVES` and implements `_info`, `_splits`
  and `_generate_examples`.
  """

  ARCHIVES: ClassVar[Archives]
  _manual_paths: Mapping[str, Path] | None = None

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
    super().download_and_prepare(download_config=config, **kwargs)

  def _split_generators(self, dl_manager):
    paths = self._manual_paths or dl_manager.download(self.ARCHIVES.urls)
    return self._splits(paths)

  @abc.abstractmethod
  def _splits(self, paths: Mapping[str, Path]):
    """Returns the examples of each split, from the archives' paths by name."""
