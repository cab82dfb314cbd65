"""Tests of CelebA."""

import numpy as np
import published
import pytest
from PIL import Image
from published import celeba_names, check_interrupted, images_with, interrupted

from configs import celeba as celeba_config
from lca.data import federate, jpeg, load
from lca.data.builders import celeba

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def test_celeba(loads):
  data = loads('celeba')
  assert (data.name, data.num_classes) == ('celeba', 2)
  np.testing.assert_allclose(data.mean, 255 * np.array(IMAGENET_MEAN))
  np.testing.assert_allclose(data.std, 255 * np.array(IMAGENET_STD))
  np.testing.assert_array_equal(data.train.labels, [1, 0, 0, 1, 1])
  np.testing.assert_array_equal(
    data.train.owners, [2880, 2937, 2880, 2937, 2880]
  )
  np.testing.assert_array_equal(data.test.labels, [0, 1])
  np.testing.assert_array_equal(data.test.owners, [9152, 6369])
  for split, number in ((data.train, 0), (data.test, 2)):
    names = celeba_names(number)
    assert split.inputs.shape == (len(names), 218, 178, 3)
    assert isinstance(split.inputs, np.memmap)
    assert isinstance(split.owners, np.memmap)
    for image, name in zip(split.inputs, names, strict=True):
      drawn = published.photograph(name).astype(int)
      # JPEG is lossy, most of all at edges.
      assert np.abs(image - drawn).mean() < 2
      middle = np.median(image[85:133, 65:113], axis=(0, 1))
      np.testing.assert_allclose(middle, drawn[109, 89], atol=3)


@pytest.mark.parametrize(
  ('size', 'resized', 'box'),
  [
    # An image of 178 x 218 is scaled to s x floor(218 s / 178). Then the s rows
    # in its centre are kept.
    (64, (64, 78), (0, 7, 64, 71)),
    (256, (256, 313), (0, 28, 256, 284)),
  ],
)
def test_celeba_resized(size, resized, box, loads):
  data = loads('celeba', image_size=size)
  assert data.train.inputs.shape == (5, size, size, 3)
  for image, name in zip(data.train.inputs, celeba_names(0), strict=True):
    content = published.encode_jpeg(published.photograph(name))
    with Image.open(published.io.BytesIO(content)) as whole:
      expected = whole.resize(resized, Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(image, np.asarray(expected))
    np.testing.assert_allclose(
      image[size // 2, size // 2], published.celeba_color(name), atol=3
    )


def test_celeba_sizes_do_not_mix(loads, data_dir):
  small = loads('celeba', image_size=8).train
  # All sizes are made from the same records; the archives are not read again.
  absent = data_dir / 'absent'
  for size, shape in ((None, (218, 178)), (8, (8, 8)), (9, (9, 9))):
    data = load(
      'celeba', data_dir=data_dir, archive_dir=absent, image_size=size
    )
    assert data.train.inputs.shape == (5, *shape, 3)
    np.testing.assert_array_equal(data.train.owners, small.owners)


def test_celeba_file_names_and_validation_are_in_the_records(loads, data_dir):
  loads('celeba')
  builder = celeba.Celeba(data_dir=data_dir)
  for number, split in enumerate(('train', 'validation', 'test')):
    records = builder.as_data_source(split)
    names = [record['file_name'].decode() for record in records]
    assert names == celeba_names(number)


def test_300_identities_of_celeba_are_clients_from_31_photographs_on(loads):
  sizes = [30, 31, 29, 35, 31, 33] + [1, 2] * 147
  examples = published.celeba_identities(sizes)
  data = loads('celeba', examples=examples)
  config = celeba_config.get_config('layerwise_cosine_krum,non_iid')
  keys = config.data.to_dict()
  for key in ('name', 'archive_dir', 'data_dir', 'image_size'):
    del keys[key]  # an option of `load`, not of `federate`
  clients = federate(data, seed=0, **keys)
  names_of = {}
  for name, (split, _, identity) in examples.items():
    if split == 0:
      names_of.setdefault(identity, []).append(name)
  assert len(names_of) == 300
  expected = [names_of[i] for i in sorted(names_of) if len(names_of[i]) >= 31]
  assert sorted(map(len, expected)) == [31, 31, 33, 35]
  got = clients.gather(range(clients.num_clients))
  assert list(got.num_examples) == [len(names) for names in expected]
  for images, labels, names in zip(
    got.inputs, got.labels, expected, strict=True
  ):
    smiling = [examples[name][1] == 1 for name in names]
    assert len(set(smiling)) == 2
    np.testing.assert_array_equal(labels[: len(names)], smiling)
    middles = np.median(images[: len(names), 85:133, 65:113], axis=(1, 2))
    colors = [published.celeba_color(name) for name in names]
    np.testing.assert_allclose(middles, colors, atol=3)


def test_a_celeba_image_that_is_cut(loads, data_dir):
  # The damaged file is copied into the records. The error comes when it is
  # decoded, and no arrays are left behind.
  whole = published.celeba_images()['000006.jpg']
  message = (
    'lca_celeba, examples 0 to 4 of its train split: not a complete JPEG'
  )
  with pytest.raises(ValueError, match=message):
    loads('celeba', image_size=8, **images_with(_000006=whole[:-900]))
  assert not list(data_dir.glob('*/*/arrays*'))


@pytest.mark.parametrize('calls', [0, 2, 5, 7])
def test_interrupted_records_of_celeba(calls, loads, data_dir, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(jpeg, 'shape', interrupted(jpeg.shape, calls))
    check_interrupted('celeba', loads, data_dir, image_size=8)
  assert not list(data_dir.glob('*/*/dataset_info.json'))
  data = loads('celeba', image_size=8)
  assert (len(data.train), len(data.test)) == (5, 2)
