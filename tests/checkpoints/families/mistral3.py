"""What tests know of mistral3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import ministral3, mistral
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures

VISION = {
  'model_type': 'pixtral',
  'hidden_size': 8,
  'intermediate_size': 4,
  'num_attention_heads': 2,
  'head_dim': 4,
  'num_hidden_layers': 1,
  'patch_size': 2,
  'image_size': 4,
}


def draw(d: Draw) -> Config:
  return wrap(
    d.pick(
      mistral.draw(d) | {'model_type': 'mistral'},
      ministral3.draw(d) | {'model_type': 'ministral3'},
    )
  )


def wrap(text: Config) -> Config:
  """Returns a config of the whole model; no token stands for an image."""
  return {
    'text_config': text,
    'vision_config': VISION,
    'image_token_index': text['vocab_size'],
    'tie_word_embeddings': text['tie_word_embeddings'],
  }


FACTS = Facts(
  draw=draw,
  cases={
    'mistral3': Case(
      wrap(
        BASE
        | {
          'model_type': 'mistral',
          'sliding_window': None,
          'tie_word_embeddings': False,
        }
      )
      | {'model_type': 'mistral3'},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2506,
    ),
    'mistral3_ministral3': Case(
      wrap(
        dict(ministral3.FACTS.cases['ministral3'].config)
        | {'sliding_window': None}
      )
      | {'model_type': 'mistral3'},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2507,
      old=True,
    ),
  },
  defaults={'num_key_value_heads': 8, 'sliding_window': 4096},
  published={
    'mistral-small-3.1-24b': Figures(
      elements='2*8*128',
      layers=40,
      bytes_per_token=163840,
      parameters=23572403200,
      source='the count that the config implies',
    ),
  },
)
