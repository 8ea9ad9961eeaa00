"""One file a published family: what tests know of it, as `FACTS`."""

import importlib
import pkgutil

from tests.checkpoints.family_facts import Case, Facts

FACTS: dict[str, Facts] = {
  file.name: importlib.import_module(f'{__name__}.{file.name}').FACTS
  for file in pkgutil.iter_modules(__path__)
}
CASES: dict[str, Case] = {
  name: case for facts in FACTS.values() for name, case in facts.cases.items()
}
