"""What do the committed records say? Writes the pages of docs/results.

  python -m experiments.results_pages                 a second
  python -m experiments.results_pages --pages=out/results_pages

Reads `results/*.jsonl` and the templates in `experiments/results_pages/pages`
(`templates.py` says how they are written) and writes one Markdown page a
template; then prints the README's table of speed. Each measured number of a
page is computed from a record, below the command, the machine, the date and
the commit of that record. `docs/results/goals.md` is written by hand and stays
as it is.

Expected: no change to a committed page; `tests/test_results_pages.py` compares
them. Would be refuted by a page that differs from what this prints.
"""

import pathlib

from absl import flags

from experiments import launch
from experiments.results_pages.templates import render_template

RESULTS = launch.ROOT / 'results'
ROOM = pathlib.Path(__file__).parent
TEMPLATES = sorted((ROOM / 'pages').glob('*.md'))
ORIGIN = """

This page is written by `python -m experiments.results_pages` from
`experiments/results_pages/pages` and the records that it names. Do not edit it.
"""
_PAGES = flags.DEFINE_string('pages', 'docs/results', 'Where pages go.')


def page(template: pathlib.Path) -> str:
  """Returns a page of docs/results: its title, who wrote it, and the rest."""
  title, rest = render_template(template, RESULTS).split('\n', 1)
  return title + ORIGIN + rest


def speed_table() -> str:
  """Returns the table of speed that the README shows."""
  return render_template(ROOM / 'readme_speed.md', RESULTS)


def main(argv: list[str]) -> None:
  del argv
  folder = pathlib.Path(_PAGES.value)
  with launch.door():
    folder.mkdir(parents=True, exist_ok=True)
    for template in TEMPLATES:
      path = folder / template.name
      path.write_text(page(template), encoding='utf-8')
      print(path)
    print(f'\nThe table of speed in README.md:\n\n{speed_table()}')


if __name__ == '__main__':
  launch.run(main)
