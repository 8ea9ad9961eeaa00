"""What a constant taken off keys saves, against codes by channel.

  python -m experiments.real_model.centring             4 minutes of two cores

One dense cache reads eight texts. It is stored anew by each codec, and the KL
divergence of what follows from the predictions behind the dense cache is
printed as Markdown. All codecs leave the same first and newest tokens exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import kvjax
from experiments.real_model.task import Size, make_task
from experiments.training.variants import array_bytes
from kvjax.text import load_tokenizer

MODEL = 'smollm2-135m'
SIZE = Size(context=512, texts=8, following=48, numbers=1)
EXACT = kvjax.Residual(kvjax.Dense(), first=4, window=32, group=32)


def codecs(config, params, other):
  """Yields codecs by name, those of keys less a constant measured."""
  for bits in (2, 4):
    plain = kvjax.Affine(bits=bits)
    for inner in (plain, kvjax.Hadamard(plain)):
      centred = kvjax.Centred(inner, whole=EXACT.first)
      yield str(inner), inner
      yield str(centred), kvjax.calibrate(config, params, other, centred)
    kivi = kvjax.KIVI(bits, group=EXACT.group, window=EXACT.window)
    yield str(kivi), kivi


def main(argv: list[str]) -> None:
  del argv
  config, params = kvjax.load_checkpoint(MODEL)
  task = make_task(load_tokenizer(MODEL), SIZE, seed=0)
  texts = jnp.asarray(task.contexts[: SIZE.texts])
  following = jnp.asarray(task.following[: SIZE.texts, : SIZE.following])

  def predict(cache):
    logits, _ = kvjax.extend(config, params, cache, following)
    return jax.nn.log_softmax(logits)

  capacity = SIZE.context + SIZE.following
  dense = kvjax.init_cache(config, SIZE.texts, capacity)
  _, dense = kvjax.prefill(config, params, dense, texts)
  full = predict(dense)
  cache = kvjax.compress(config, params, dense, EXACT)
  print('| codec | bytes a token | KL, mean | median | of a text |')
  print('| --- | ---: | ---: | ---: | ---: |')
  for name, codec in codecs(config, params, jnp.asarray(task.other)):
    coded = kvjax.compress(config, params, cache, codec)
    found = predict(coded)
    lost = np.asarray(jnp.sum(jnp.exp(full) * (full - found), axis=-1))
    size = array_bytes(coded) / (SIZE.texts * capacity)
    by_text = lost.mean(axis=1)
    span = f'{by_text.min():.4f} to {by_text.max():.4f}'
    numbers = f'{lost.mean():.4f} | {np.median(lost):.4f} | {span}'
    print(f'| `{name}` | {size:,.0f} | {numbers} |', flush=True)


if __name__ == '__main__':
  app.run(main)
