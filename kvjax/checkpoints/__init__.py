"""Published checkpoints: config.json and safetensors to config and params."""

from kvjax.checkpoints.load import load_checkpoint, load_config, parse_config
from kvjax.checkpoints.published import published_names

__all__ = ['load_checkpoint', 'load_config', 'parse_config', 'published_names']
