"""The numbers of docs/why_no_q.md.

python -m experiments.why_no_q_cache.origin_note
"""

from experiments import launch
from experiments.why_no_q_cache import note


def main(argv: list[str]) -> None:
  del argv
  for heading, text in note.sections().items():
    print(f'# {heading}\n{text}')


if __name__ == '__main__':
  launch.run(main)
