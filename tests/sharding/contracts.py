"""Cached equals uncached over split slots, and what a mesh refuses.

  python -m tests.sharding.contracts [GROUP ...]

Runs in a process of eight CPU devices; prints name, seconds and fault of each
contract, as JSON.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.sharding import contracts_of_calls, contracts_of_kinds
from tests.sharding.split_cache import CONTRACTS

MODULES = contracts_of_kinds, contracts_of_calls  # which register theirs


def run(function: Callable[[], Any]) -> str:
  """Returns what is wrong with a contract, '' for nothing."""
  try:
    function()
  except Exception as error:
    return f'{type(error).__name__}: {error}'[:1500]
  return ''


def main(groups: Sequence[str]) -> None:
  for group in groups or CONTRACTS:
    for name, function in CONTRACTS[group].items():
      start = time.time()
      line = {'name': name, 'fault': run(function)}
      line['seconds'] = round(time.time() - start, 1)
      print(json.dumps(line), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
