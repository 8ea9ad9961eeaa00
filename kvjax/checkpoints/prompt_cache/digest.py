"""A digest of a saved cache: one changed bit of it gives another digest."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np


def digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of a text and of arrays, in hexadecimal.

  It covers names, dtypes, shapes and every byte, in the order of the names. No
  array is copied. It guards against damage, not against forgery: who edits
  a file can compute the digest anew.
  """
  names = sorted(arrays)
  heads = [[n, arrays[n].dtype.name, arrays[n].shape] for n in names]
  state = hashlib.sha256(json.dumps([text, heads]).encode())
  for name in names:
    array = np.ascontiguousarray(arrays[name])
    state.update(array.reshape(-1).view(np.uint8).data)
  return state.hexdigest()
