"""Variants, kinds, codecs and features whose slots or heads are split."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.models.uncached import with_visibility
from kvjax.sharding import Rules
from kvjax.testing import assert_cached_matches_uncached
from tests.contract.oracle import NearTie, Sees
from tests.contract.table import (
  LENGTH,
  LONG,
  VOCAB,
  WIDTH,
  Cell,
  Row,
  Variant,
  draw,
  text,
)
from tests.facts import tiny
from tests.sharding.split_cache import (
  CAPACITY,
  CONTRACTS,
  ROTARY,
  RULES,
  TURN,
  close,
  grouped,
  init,
  place,
  run_model,
)


@dataclasses.dataclass(frozen=True)
class SplitCell(Cell):
  """A cell of the contract table, over the mesh."""

  rules: Rules = RULES

  def init(self, batch: int, capacity: int = CAPACITY) -> kvjax.Cache:
    return init(
      self.config,
      batch,
      kinds=self.row.kind,
      codec=self.codec,
      rules=self.rules,
    )


GQA = Variant('gqa', kvjax.Grouped(8, 2, 6, value_width=5, rotary=ROTARY))
# No rule splits six heads in eight: one sum merges what devices attended to.
SIX = Variant('six', kvjax.Grouped(6, 2, 6, value_width=5, rotary=ROTARY))
MLA = Variant('mla', kvjax.Latent(8, 11, 5, 7, rotary=kvjax.Rotary(4)))
KINDS = (
  Row('dense', kvjax.Dense(), Sees(), 4, False),
  Row('ring', kvjax.Ring(window=5, slack=3), Sees(5), 4, True),
  Row('sinks', kvjax.Sinks(sinks=2, window=5, slack=1), Sees(5, 2), 2, True),
  Row(
    'renumbered',
    kvjax.Sinks(sinks=2, window=5, slack=1, renumber=True),
    Sees(5, 2, renumber=True),
    2,
    True,
  ),
  Row('paged', kvjax.Paged(page=4), Sees(), 4, False),
)


def product() -> dict[str, SplitCell]:
  """Returns the cells of the product that are run, by name."""
  found = [SplitCell(GQA, row, None, '') for row in KINDS]
  found += [
    SplitCell(MLA, row, None, '') for row in KINDS if row.name != 'sinks'
  ]
  found += [
    SplitCell(variant, KINDS[0], codec, '')
    for variant, codec in ((SIX, None), (GQA, kvjax.Int8()))
  ]
  found.append(SplitCell(GQA, KINDS[1], kvjax.Int8(), ''))
  found.append(SplitCell(GQA, KINDS[4], kvjax.Int8(), ''))
  return {
    f'{x.variant.name}_{x.row.name}{"_int8" if x.codec else ""}': x
    for x in found
  }


def run_cell(cell: SplitCell) -> None:
  # Rows change alike in all variants and codecs.
  changes: dict[str, Any] = {}
  if cell.variant is GQA and cell.codec is None:
    changes = {'rewind': kvjax.rewind, 'take': kvjax.take, 'fork': kvjax.fork}
  for seed in range(20):
    params = draw(cell.config, seed)
    try:
      assert_cached_matches_uncached(
        cell.oracle(params),
        cell.init,
        functools.partial(cell.extend, place(cell.config, params)),
        **changes,
        tokens=text(seed),
        chunkings=(3, None),
        widths=(3, LENGTH),
        rewind_by=cell.row.rewinds,
        wrap=LONG if cell.row.wraps else None,
      )
      return
    except NearTie:
      continue
  raise AssertionError('no seed without near ties')


for cell_name, cell in product().items():
  CONTRACTS[cell.row.name][cell_name] = functools.partial(run_cell, cell)


FEATURES = {
  'sink_logits_and_softcap': (
    grouped(rotary=TURN, sinks=True, softcap=3.0),
    grouped(sinks=True, scale=0.5),
  ),
  'alibi': (grouped(bias=kvjax.Alibi()),),
  'relative': (grouped(bias=kvjax.RelativeBias(8, 11)),) * 2,
  'shared_keys_and_values': (
    grouped(rotary=TURN),
    grouped(rotary=TURN, shared_from=0),
  ),
  'biased_experts': (
    dataclasses.replace(
      grouped(rotary=TURN, projection_bias=True),
      mlp=kvjax.Experts(8, 2, 16, bias=True, shared=kvjax.MLP(16)),
    ),
  ),
}
FEATURES['recent'] = tiny.recent_layers(8, 2)
# Of how many devices share heads a bias must know nothing.
SPLITS = {'slots': RULES, 'heads': Rules(heads=('kv', 'c'))}
OF_EXPERTS = {
  'experts': Rules(batch='kv', experts='c'),
  'experts_and_hidden': Rules(heads='kv', experts='c'),
}


def run_feature(name: str, rules: Rules) -> None:
  norm = tiny.RECENT.norm if name == 'recent' else kvjax.Norm()
  config = kvjax.ModelConfig(VOCAB, WIDTH, FEATURES[name], norm=norm)
  run_model(config, draw(config, 0), rules=rules)


CONTRACTS['features'] = {
  f'{name}_by_{split}': functools.partial(run_feature, name, rules)
  for name in FEATURES
  for split, rules in (
    SPLITS | (OF_EXPERTS if name == 'recent' else {})
  ).items()
}


def run_long_prefill(attention: Any, kind: kvjax.Kind) -> None:
  """Feeds 320 tokens at once, then some one by one."""
  config = kvjax.ModelConfig(
    VOCAB, WIDTH, (kvjax.Layer(attention, kvjax.MLP(16)),)
  )
  params = draw(config, 0)
  tokens = text(0, 2, 324)
  seen = with_visibility(config, kind.visible_through)
  wanted = kvjax.forward(seen, params, jnp.asarray(tokens))
  on_mesh = place(config, params)
  cache = init(config, 2, capacity=328, kinds=kind)
  found, cache = kvjax.prefill(
    config, on_mesh, cache, tokens[:, :320], [320, 317]
  )
  close(found, np.stack([wanted[0, 319], wanted[1, 316]]))
  cache = kvjax.rewind(cache, np.asarray([317, 317]))
  for index in range(317, 324):
    found, cache = kvjax.decode_step(config, on_mesh, cache, tokens[:, index])
    close(found, wanted[:, index])


LONG_KINDS = {
  'dense': kvjax.Dense(),
  'ring': kvjax.Ring(window=37, slack=7),
  'paged': kvjax.Paged(page=16),
}
CONTRACTS['long'] = {
  f'long_prefill_{variant.name}_{name}': functools.partial(
    run_long_prefill, variant.attention, kind
  )
  for variant in (GQA, MLA)
  for name, kind in LONG_KINDS.items()
}
