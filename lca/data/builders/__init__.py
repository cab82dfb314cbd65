"""TFDS builders that prepare and read without TensorFlow.

Their names differ from TFDS's own, so that both fit into one `data_dir`.
Importing a builder imports TFDS; this module does not, and holds what it takes
to find prepared data without it.
"""

VERSIONS = {
  'lca_celeba': '1.0.0',
  'lca_cifar10': '1.0.0',
  'lca_emnist_digits': '1.0.0',
  'lca_fashion_mnist': '1.0.0',
  'lca_mnist': '1.0.0',
}
