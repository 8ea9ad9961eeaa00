"""Draws tiny configs of each family from its published configuration space.

Sequences of 21 tokens pass every window and most original lengths drawn here.
`draw(family, rng)` returns the keys of a config.json, newer style.
"""

import numpy as np

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import FACTS


def draw(family: str, rng: np.random.Generator) -> Config:
  """Returns one config of a family, with its `model_type`."""
  facts = FACTS[family]
  kind = facts.model_type or family
  return {'model_type': kind} | dict(facts.draw(Draw(rng)))
