"""From the records of `experiments/real_model/__main__.py` to a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import (
  Block,
  Code,
  Heading,
  Picture,
  Table,
  Text,
)
from experiments.reporting.groups import of_kind

Records = Sequence[Mapping[str, Any]]


def answers(records: Records) -> tuple[Block, ...]:
  """Returns what the model answered through each cache."""
  blocks: list[Block] = [Heading('One question through every cache')]
  for record in of_kind(records, 'answer'):
    blocks += [
      Text(f'{record["cache"]}, {record["cache_bytes"]:,} bytes:'),
      Code(record['text'], f'{record["prompt"]}\n'),
    ]
  return tuple(blocks)


def costs(records: Records, context: int) -> tuple[Block, ...]:
  """Returns what each cache forgot of a context."""
  figures = of_kind(records, 'cost')
  label = 'Lower and further left is better; higher is better on the right.'
  return (
    Heading('What a smaller cache costs'),
    Table.of(
      f'Predictions behind a context of {context} tokens, which is compressed '
      'before what follows is known',
      {
        'cache': 'cache',
        'bytes a token': lambda r: round(r['bytes_per_token']),
        'of the first': lambda r: (
          r['bytes_per_token'] / figures[0]['bytes_per_token']
        ),
        'KL': 'kl_mean',
        'KL, median': 'kl_median',
        'bits per byte': 'bits_per_byte',
        'digits right': lambda r: f'{r["digits"]:.0%}',
      },
      figures,
      note='KL: divergence from the predictions through the first cache, nats '
      'a token of prose. Bits per byte of the same prose say little: most '
      'tokens need no memory of what is far away. Digits: of numbers hidden in '
      'the context, the likeliest token at each place.',
    ),
    Picture('cost', _picture(figures), label),
  )


def _picture(figures: Records) -> bytes:
  panels = (
    ('KL from the full cache (nats a token)', 'kl_mean', 'symlog'),
    ('digits right', 'digits', 'linear'),
  )
  canvas, axes = plots.figure(
    2, 11, 4.4, 'What a smaller cache costs a trained model'
  )
  for panel, (title, field, scale) in zip(axes, panels, strict=True):
    for index, record in enumerate(figures):
      panel.plot(
        record['bytes_per_token'],
        record[field],
        plots.MARKERS[index % len(plots.MARKERS)],
        color=plots.COLOURS[index % len(plots.COLOURS)],
        label=record['cache'],
        markersize=9,
        linestyle='none',
        clip_on=False,
      )
    panel.set_xscale('log', base=2)
    panel.xaxis.set_major_formatter('{x:,.0f}')
    panel.set_yscale(
      scale, **({'linthresh': 1e-4} if scale != 'linear' else {})
    )
    panel.set_ylim(0, 2 if scale == 'symlog' else 1)
    panel.set_xlabel('bytes a token of context')
    panel.set_title(title, loc='left', fontsize=10)
  handles, names = axes[0].get_legend_handles_labels()
  canvas.legend(
    handles, names, frameon=False, loc='outside lower center', ncol=3
  )
  return plots.png(canvas)


def claims(records: Records, expected: Mapping[str, float]) -> Table:
  """Returns what would refute the experiment, and whether it did.

  Args:
    records: of the run.
    expected: 'digits', 'int8_kl' and 'ring_over_sinks' of the config.
  """
  figures = of_kind(records, 'cost')
  (check,) = of_kind(records, 'uncached')
  first = figures[0]
  allocated = all(r['cache_bytes'] == r['planned_bytes'] for r in figures)
  rows: list[tuple[str, bool]] = [
    (
      'the full cache predicts as the model without a cache '
      f'(KL {check["kl"]:.1e})',
      check['kl'] < 1e-5,
    ),
    ('bytes allocated are the bytes planned', allocated),
    (
      f'the full cache finds {expected["digits"]:.0%} of the digits '
      f'({first["digits"]:.0%})',
      first['digits'] >= expected['digits'],
    ),
  ]
  forgetful = [r for r in figures if not r['keeps_all']]
  if forgetful and expected['digits']:
    best = max(r['digits'] for r in forgetful)
    rows.append(
      (
        f'no cache that forgets finds as many ({best:.0%} at most)',
        best < first['digits'],
      )
    )
  divergence = {r['cache']: r['kl_mean'] for r in figures}
  if 'int8' in divergence:
    rows.append(
      (
        f'eight bits change less than {expected["int8_kl"]} nats '
        f'({divergence["int8"]:.1e})',
        divergence['int8'] < expected['int8_kl'],
      )
    )
  starts = {name.partition(':')[0]: kl for name, kl in divergence.items()}
  if {'ring', 'sinks'} <= starts.keys():
    ratio = starts['ring'] / max(starts['sinks'], 1e-9)
    rows.append(
      (
        'a window without the first tokens is further away than one with them '
        f'({ratio:.1f} times)',
        ratio >= expected['ring_over_sinks'],
      )
    )
  return Table('What would have refuted this', ('claim', 'holds'), rows)
