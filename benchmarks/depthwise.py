"""Times lca's depthwise convolutions beside XLA's own.

    python -m benchmarks.depthwise --output=depthwise.json

The layers are EfficientNet-B0's depthwise convolutions on images of 64 pixels.
For several clients, each with a kernel of its own, a call computes the output
and both gradients of a batch of 32. The clients are taken in a loop, one after
the other as on a CPU device, and by `vmap`, as on an accelerator. Times are in
milliseconds for one client's batch.
"""

import functools
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

from benchmarks import record
from lca.models.kernels import depthwise

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls.', lower_bound=1)

CLIENTS, BATCH = 4, 32
# One layer of each stage: the image's side, channels, kernel's side, stride.
LAYERS = [
  (32, 32, 3, 1),
  (32, 96, 3, 2),
  (16, 144, 5, 2),
  (8, 240, 3, 2),
  (4, 480, 5, 1),
  (4, 672, 5, 2),
  (2, 1152, 3, 1),
]


def native(x, kernel, strides, padding):
  """Convolves with XLA's grouped convolution."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def step(conv, strides, padding, x, kernel):
  """Computes what training needs of a layer: its output and both gradients."""
  out, gradients = jax.vjp(lambda x, k: conv(x, k, strides, padding), x, kernel)
  return jnp.sum(out), gradients(out)


def in_turns(function):
  """Returns a function that takes the clients one after the other."""
  return lambda x, kernel: lax.map(lambda pair: function(*pair), (x, kernel))


def milliseconds(
  layer: tuple[int, int, int, int],
) -> dict[str, dict[str, list[float]]]:
  """Times both convolutions of a layer, which take turns.

  Args:
    layer: an entry of `LAYERS`.

  Returns:
    Milliseconds of each call, by the way to take the clients (`'in turns'` or
    `'vmap'`) and by the convolution (`'lca'` or `'native'`).
  """
  side, channels, size, stride = layer
  low = (size - 1) // 2
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (CLIENTS, BATCH, side, side, channels))
  kernel = jax.random.normal(keys[1], (CLIENTS, size, size, 1, channels))
  calls = {}
  for name, conv in (('lca', depthwise.conv), ('native', native)):
    one_client = functools.partial(
      step, conv, (stride, stride), ((low, low), (low, low))
    )
    for way, function in (
      ('in turns', in_turns(one_client)),
      ('vmap', jax.vmap(one_client)),
    ):
      calls[way, name] = jax.jit(function).lower(x, kernel).compile()
  measured = {}
  for repeat in range(_REPEATS.value + 1):
    for (way, name), call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call(x, kernel))
      seconds = time.perf_counter() - start
      if repeat:  # the first call is a warm-up
        times = measured.setdefault(way, {}).setdefault(name, [])
        times.append(1000 * seconds / CLIENTS)
  return measured


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  results = []
  for layer in LAYERS:
    measured = milliseconds(layer)
    results.append({'layer': layer, 'milliseconds': measured})
    for way, times in measured.items():
      own, other = (statistics.median(times[k]) for k in ('lca', 'native'))
      name = '{}x{} {} channels, kernel {}, stride {}'.format(layer[0], *layer)
      print(f'{name:44} {way:9} {own:7.1f} {other:8.1f} {other / own:6.1f} x')
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'clients': CLIENTS,
      'batch': BATCH,
      'results': results,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(about, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
