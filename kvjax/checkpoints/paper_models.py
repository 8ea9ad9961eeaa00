"""A model known from a paper's table, as a config.json that kvjax defines.

Some published models have no checkpoint, or a checkpoint of a family that kvjax
does not read. What a table says of such a model suffices to plan its memory.
`model_type` is 'described', keys are spelled as in other families, and these
keys are added:

- `norm`: 'rms' (the default), 'layer', or 'layer without bias';
- `gated`: of the MLP, true by default; `bias`: on every projection;
- `learned_positions`: rows of a table; without this key positions are rotary;
- `parallel`: attention and MLP read the same input;
- `keys_and_values_of`: for each layer the earlier layer whose keys and values
  it reads, null for a layer that computes them (arXiv 2405.12981);
- `dense_layers`: with `num_experts`, which layers have none.
"""

from kvjax.attention.rotary import Rotary
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP

DESCRIBED = 'described'
NORMS = {
  'rms': Norm(1e-5),
  'layer': Norm(1e-5, centered=True, bias=True),
  'layer without bias': Norm(1e-5, centered=True),
}


def parse_described(settings: Settings) -> ModelConfig:
  """Returns the config of a described model.

  Raises:
    ValueError: a size is missing or makes no sense.
  """
  norm = settings.get('norm', 'rms')
  settings.only('norm', *NORMS)
  sources = settings.per_layer('keys_and_values_of', [None])
  layers = [_layer(settings, i, source) for i, source in enumerate(sources)]
  return settings.model(
    layers,
    tied=False,
    norm=NORMS[norm],
    positions=settings.get('learned_positions', 0),
  )


def _layer(settings: Settings, index: int, source: int | None) -> Layer:
  learned = settings.get('learned_positions', 0)
  attention = grouped(
    settings,
    bias=settings.get('bias', False),
    rotary=None if learned else Rotary(settings.head_width()),
    shared_from=source,
  )
  parallel = 'shared' if settings.get('parallel', False) else None
  return Layer(attention, _mlp(settings, index), parallel=parallel)


def _mlp(settings: Settings, index: int) -> MLP | Experts:
  activation = settings.activation('hidden_act')
  experts = settings.get('num_experts', 0)
  if experts and index not in settings.get('dense_layers', []):
    shared = settings.get('shared_expert_size', 0)
    return Experts(
      experts,
      settings.need('num_experts_per_tok'),
      settings.need('moe_intermediate_size'),
      activation,
      shared=MLP(shared, activation) if shared else None,
    )
  return MLP(
    settings.need('intermediate_size'),
    activation,
    gated=settings.get('gated', True),
    bias=settings.get('bias', False),
  )
