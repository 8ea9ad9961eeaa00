"""From the records of `experiments/frontier/__main__.py` to a report."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Heading, Picture, Table
from experiments.reporting.groups import grouped, of_kind

Record = Mapping[str, Any]
Records = Sequence[Record]
FIGURE = 'kl_contexts_median'  # what the front is of
FLOOR = 1e-5  # nats below which a plot does not tell points apart


def front(records: Records, figure: str = FIGURE) -> list[str]:
  """Returns caches that no other cache beats in both bytes and the figure.

  The oracle takes no part: nobody can have it.
  """
  possible = [r for r in records if r['family'] != 'oracle']
  possible = sorted(possible, key=lambda r: (r['bytes_per_token'], r[figure]))
  found, least = [], float('inf')
  for record in possible:
    if record[figure] < least:
      found.append(record['cache'])
      least = record[figure]
  return found


def costs(
  records: Records, title: str, names: Container[str], parts: Container[str]
) -> Iterator[Block]:
  """Yields a heading, a table a part, and a picture of them.

  Args:
    records: of all tables.
    title: of the table.
    names: its caches, as they are spelled.
    parts: what it is about.
  """
  chosen = [
    r
    for r in of_kind(records, 'cost')
    if r['cache'] in names and r['part'] in parts
  ]
  if not chosen:
    return
  yield Heading(f'Table: {title}')
  panels = grouped(chosen, lambda r: (r['reading'], r['part']))
  for (reading, part), rows in panels.items():
    best = front(rows)
    yield Table.of(
      f'{part}, {reading}' if part != reading else part,
      {
        'cache': 'label',
        'bytes a token': lambda r: round(r['bytes_per_token']),
        'prefill MB': lambda r: round(r['prefill_bytes'] / 1e6),
        'KL, mean': 'kl_mean',
        'KL, median': 'kl_median',
        'KL, median context': FIGURE,
        'NLL': 'nll',
        'right': lambda r: f'{r["right"]:.0%}',
        'exact': lambda r: f'{r["exact"]:.0%}',
        'front': lambda r, best=best: 'front' if r['cache'] in best else None,
        'seconds': lambda r: round(r['seconds'], 1),
      },
      rows,
      note='Bytes of all that lives, a token of context. Prefill: that cache '
      'and the most that is alive while it reads one context at once. KL from '
      'the full cache in nats: over all predictions, and of the median '
      'context. NLL: nats of the true token. Front: no other cache has fewer '
      'bytes and a lower KL of the median context; the oracle takes no part.',
    )
  yield Picture(
    title.replace(' ', '_'),
    _picture(panels),
    'KL of the median context from the full cache, nats, against bytes a token '
    'of context. Names and the line: the front. Lower and further left is '
    f'better; below {FLOOR:g} points stand on the axis.',
  )


def _picture(panels: Mapping[Any, Records]) -> bytes:
  count = len(panels)
  canvas, axes = plots.figure(
    count,
    6.2 * min(count, 2),
    4.6 * -(-count // 2),
    'What a smaller cache costs',
    rows=-(-count // 2),
  )
  names = ('codec', 'score', 'score and codec', 'window', 'oracle')
  for panel, ((reading, part), rows) in zip(axes, panels.items(), strict=True):
    for index, name in enumerate(names):
      points = [r for r in rows if r['family'] == name]
      panel.plot(
        [r['bytes_per_token'] for r in points],
        [max(r[FIGURE], FLOOR) for r in points],
        plots.MARKERS[index],
        color=plots.COLOURS[index],
        label=name,
        linestyle='none',
        markersize=6,
      )
    best = front(rows)
    line = [r for r in rows if r['cache'] in best]
    line.sort(key=lambda r: r['bytes_per_token'])
    panel.step(
      [r['bytes_per_token'] for r in line],
      [max(r[FIGURE], FLOOR) for r in line],
      where='post',
      color=plots.INK,
      linewidth=0.8,
      zorder=0,
    )
    for record in line:
      panel.annotate(
        record['label'],
        (record['bytes_per_token'], max(record[FIGURE], FLOOR)),
        xytext=(4, 4),
        textcoords='offset points',
        fontsize=6,
      )
    panel.set_xscale('log', base=2)
    panel.xaxis.set_major_formatter('{x:,.0f}')
    panel.set_yscale('log')
    panel.set_xlabel('bytes a token of context')
    panel.set_ylabel('KL, nats')
    panel.set_title(f'{part}: {reading}', loc='left', fontsize=10)
  handles, texts = axes[0].get_legend_handles_labels()
  canvas.legend(
    handles, texts, frameon=False, loc='outside lower center', ncol=5
  )
  return plots.png(canvas)


def recalls(records: Records) -> Iterator[Block]:
  """Yields a table of recall for each trained model."""
  chosen = of_kind(records, 'recall')
  for model, rows in grouped(chosen, lambda r: r['model']).items():
    yield Heading(f'Recall of pairs, {model}')
    yield Table.of(
      f'Pairs recalled by a trained model ({model})',
      {
        'cache': 'label',
        'bytes a token': lambda r: round(r['bytes_per_token']),
        'right': lambda r: f'{r["right"]:.1%}',
        'ceiling': lambda r: f'{r["ceiling"]:.1%}',
        'limit': lambda r: f'{r["limit"]:.1%}',
        'queries of lost pairs': 'lost_queries',
        'of these right': lambda r: (
          None if r['lost_right'] is None else f'{r["lost_right"]:.1%}'
        ),
        'seconds': lambda r: round(r['seconds'], 1),
      },
      rows,
      note='Ceiling: the share of pairs of which a slot survives in any layer '
      'and head, and a guess for the others. Limit: that and three standard '
      'errors. Who is above the limit has seen the queries.',
    )


def claims(records: Records, expected: Mapping[str, Any]) -> Table:
  """Returns what would refute the experiment, and whether it did.

  Args:
    records: of all runs in one folder.
    expected: of the config.
  """
  rows = [
    *_claims_of_cost(of_kind(records, 'cost'), expected),
    *_claims_of_recall(of_kind(records, 'recall'), expected),
  ]
  return Table('What would have refuted this', ('claim', 'holds'), rows)


def _claims_of_cost(
  costs: Records, expected: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
  if costs:
    equal = all(r['cache_bytes'] == r['planned_bytes'] for r in costs)
    yield 'bytes allocated are the bytes planned', equal
  full = [r['kl_mean'] for r in costs if r['cache'] == 'plain']
  if full:
    yield (
      f'a cache that forgets nothing has KL 0 ({max(full):.1e} at most)',
      max(full) <= expected['full'],
    )
  int8 = [
    r['kl_mean'] for r in costs if (r['label'], r['part']) == ('int8', 'prose')
  ]
  if int8:
    yield (
      f'eight bits change less than {expected["int8"]} nats ({max(int8):.1e})',
      max(int8) < expected['int8'],
    )
  if not expected['oracle']:
    return
  for (reading, part), rows in grouped(
    costs, lambda r: (r['reading'], r['part'])
  ).items():
    for oracle in (r for r in rows if r['family'] == 'oracle'):
      others = [r for r in rows if _keeps_as_many(r, oracle)]
      if others:
        best = min(others, key=lambda r: r[FIGURE])
        yield (
          f'{part}, {reading}: the oracle loses least in the median context '
          f'({oracle[FIGURE]:.2g}; {best["label"]} {best[FIGURE]:.2g})',
          oracle[FIGURE] <= best[FIGURE],
        )


def _keeps_as_many(record: Record, oracle: Record) -> bool:
  budgets = [r['cache'].partition(',')[0] for r in (record, oracle)]
  return budgets[0] == budgets[1] and record['family'] != 'oracle'


def _claims_of_recall(
  recalls: Records, expected: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
  for model, rows in grouped(recalls, lambda r: r['model']).items():
    full = [r['right'] for r in rows if r['cache'] in ('plain', 'default')]
    if full:
      yield (
        f'{model}: the full cache recalls {expected["recall"]:.0%} of '
        f'the pairs ({full[0]:.1%})',
        full[0] >= expected['recall'],
      )
    blind = [r for r in rows if r['family'] != 'oracle']
    over = [r['label'] for r in blind if r['right'] > r['limit']]
    yield (
      f'{model}: nobody recalls more than its books allow'
      + (f' ({", ".join(over)})' if over else ''),
      not over,
    )
    knows = [
      r['label']
      for r in blind
      if r['lost_queries'] and r['lost_right'] > r['lost_limit']
    ]
    yield (
      f'{model}: a pair without a slot is guessed'
      + (f' ({", ".join(knows)})' if knows else ''),
      not knows,
    )
