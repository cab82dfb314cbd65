"""TFDS builders that prepare and read data sets without TensorFlow.

Their names begin with `lca_`, so that their data and those of TFDS's own
builders can share one `data_dir`. Importing a builder imports TFDS. This module
does not import TFDS: `VERSIONS` is all that is needed to find prepared data.
"""

VERSIONS = {
  'lca_celeba': '1.0.0',
  'lca_cifar10': '1.0.0',
  'lca_emnist_digits': '1.0.0',
  'lca_fashion_mnist': '1.0.0',
  'lca_mnist': '1.0.0',
}
