"""Four virtual devices; a cache of compilations where one is asked for.

With JAX_COMPILATION_CACHE_DIR set, short compilations stay as well.
"""

import os

os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import jax

jax.config.update('jax_num_cpu_devices', 4)
