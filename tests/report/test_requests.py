"""Command lines of heat maps and tables."""

import types

import pytest

from lca.report import requests
from lca.report.requests import Request

pytestmark = pytest.mark.quick

HEAT_MAP = ['x:aggregator.f', 'y:data.alpha', 'value:test_accuracy']
TABLE = ['rows:aggregator', 'columns:attack', 'value:test_loss']


def flags(**given):
  lists = ('heatmap', 'table', 'where', 'worst_over', 'best', 'choose')
  unset = {name: [] for name in lists} | {'columns': None, 'figure': []}
  return types.SimpleNamespace(**unset | given)


def test_heat_maps_and_tables():
  assert requests.from_flags(
    flags(
      heatmap=[HEAT_MAP, [*HEAT_MAP, 'panels:aggregator', 'name:mine']],
      table=[TABLE],
    )
  ) == (
    [
      Request('data.alpha', 'aggregator.f', 'test_accuracy'),
      Request(
        'data.alpha', 'aggregator.f', 'test_accuracy', 'aggregator', name='mine'
      ),
    ],
    [Request('aggregator', 'attack', 'test_loss')],
  )


def test_reductions_and_conditions():
  (request,), _ = requests.from_flags(
    flags(
      heatmap=[HEAT_MAP],
      worst_over=['attack'],
      best=['aggregator'],
      choose=['client.learning_rate', 'client.momentum'],
      where=['data.name=digits', 'model.name=a=b', 'data.name=mnist'],
    )
  )
  assert request.where == {
    'data.name': ['digits', 'mnist'],
    'model.name': ['a=b'],
  }
  assert request.file == (
    'test_accuracy_by_data.alpha_aggregator.f_worst_attack_best_aggregator_'
    'chosen_client.learning_rate_client.momentum_'
    'where_data.name=digits,mnist_where_model.name=a=b'
  )


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'heatmap': [HEAT_MAP[:2]]}, 'lacks value; the form is x:X,y:Y,value:VA'),
    ({'heatmap': [[*HEAT_MAP, 'z:seed']]}, "--heatmap: unknown part 'z'"),
    ({'heatmap': [[*HEAT_MAP, 'panel:a']]}, "did you mean 'panels'"),
    ({'heatmap': [[*HEAT_MAP, 'x:data.name']]}, 'x is given twice'),
    ({'table': [['rows', *TABLE[1:]]]}, 'rows has no value'),
    ({'table': [[*TABLE, 'panels:data.name']]}, "--table: unknown part 'pan"),
    ({'table': [TABLE], 'best': ['attack']}, 'attack cannot be .* given twice'),
    ({'table': [TABLE], 'worst_over': ['seed']}, 'means over the seeds'),
    ({'table': [TABLE], 'where': ['data.name']}, '--where=KEY=VALUE'),
    ({'where': ['data.name=digits']}, '--where applies to --heatmap and'),
    (
      {'figure': [['lca_1']], 'best': ['attack']},
      '--best applies to --heatmap',
    ),
    ({'table': [TABLE], 'columns': '1'}, '--columns applies to --heatmap and'),
  ],
)
def test_what_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    requests.from_flags(flags(**given))
