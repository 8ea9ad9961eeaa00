"""Published checkpoints: config.json and safetensors to config and params."""

from kvjax.checkpoints.catalogue import published_names
from kvjax.checkpoints.load import load_checkpoint, load_config, parse_config
from kvjax.checkpoints.saving.save import save_checkpoint

__all__ = [
  'load_checkpoint',
  'load_config',
  'parse_config',
  'published_names',
  'save_checkpoint',
]
