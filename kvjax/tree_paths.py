"""Names of the leaves of a tree: the paths that lead to them."""

from collections.abc import Callable
from typing import Any

import jax


def leaves_by_path(
  tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
  """Returns every leaf by its path, `layers.3.attention.query`, in order."""
  leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=is_leaf)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }
