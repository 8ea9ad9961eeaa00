"""Published checkpoints: config.json and safetensors to config and params."""

from kvjax.checkpoints.catalogue import published_names
from kvjax.checkpoints.load import load_checkpoint, load_config, parse_config

__all__ = ['load_checkpoint', 'load_config', 'parse_config', 'published_names']
