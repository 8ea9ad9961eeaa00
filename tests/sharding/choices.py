"""Kernels of one-device programs, as JSON: python -m tests.sharding.choices."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jax

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder()
OPTIONS: dict[str, dict[str, Any]] = {
  'dense': {},
  'int8': {'codec': kvjax.Int8()},
  'affine': {'codec': kvjax.Affine(bits=8)},
  'paged': {'kinds': kvjax.Paged(page=4)},
}


def custom_calls(device: jax.Device, **options: Any) -> list[str]:
  """Returns the custom calls of a decode step on a device, sorted."""
  cache = kvjax.init_cache(CONFIG, 2, 64, **options)
  args = tiny.params(CONFIG), cache, tiny.tokens(2, 1)[:, 0]
  step = jax.jit(lambda *args: kvjax.decode_step(CONFIG, *args))
  compiled = step.lower(*jax.device_put(args, device)).compile()
  calls = re.findall(r'custom_call_target="(\w+)"', compiled.as_text())
  return sorted(calls)


def choices() -> Iterator[tuple[str, list[str]]]:
  for name, options in OPTIONS.items():
    for index in (0, -1):
      yield f'{name} {index}', custom_calls(jax.devices()[index], **options)


if __name__ == '__main__':
  print(json.dumps({'devices': jax.device_count(), **dict(choices())}))
