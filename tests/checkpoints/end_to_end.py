"""Question: does a directory as a user has it say what transformers says of it?

    python -m tests.checkpoints.end_to_end

transformers writes a tiny Qwen3 with random weights, `tokenizers` a byte-level
BPE with a chat template; `experiments.generate` and `experiments.perplexity`
run on that directory from the command line, ragged prompts in one batch.
Another token than transformers generates, or a figure further than 1e-4 bits a
byte from the loss that it computes, refutes it: exit status 1. Needs torch and
transformers; about half a minute of processor time.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import (
  Tokenizer,
  decoders,
  models,
  pre_tokenizers,
  processors,
  trainers,
)

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = ['What must a transformer remember?', 'K and V, never Q', 'Hello']
TOKENS = 24
ROWS, LENGTH = 3, 64
SPECIAL = ['<s>', '</s>', '<|user|>', '<|assistant|>']
TEMPLATE = (
  '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}'
  '{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}'
)


def write(path: pathlib.Path, text: str) -> tuple[Any, Any]:
  """Writes model and tokenizer; returns both."""
  plain = Tokenizer(models.BPE())
  plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  plain.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  plain.train_from_iterator(
    [text],
    trainers.BpeTrainer(
      vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet
    ),
  )
  plain.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  words = transformers.PreTrainedTokenizerFast(
    tokenizer_object=plain, bos_token='<s>', eos_token='</s>'
  )
  words.chat_template = TEMPLATE
  words.save_pretrained(path)
  torch.manual_seed(0)
  model = transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(
      vocab_size=len(words),
      hidden_size=48,
      intermediate_size=96,
      num_hidden_layers=3,
      num_attention_heads=6,
      num_key_value_heads=2,
      head_dim=8,
      max_position_embeddings=2048,
      bos_token_id=0,
      eos_token_id=1,
    )
  ).eval()
  for weight in model.parameters():
    if weight.ndim > 1:
      torch.nn.init.normal_(weight, std=0.3)
  model.save_pretrained(path)
  return model, words


def theirs(model: Any, words: Any, prompt: str, chat: bool) -> list[int]:
  """Returns what transformers generates, greedy."""
  ids = words(prompt)['input_ids']
  if chat:
    message = [{'role': 'user', 'content': prompt}]
    ids = words.apply_chat_template(
      message, add_generation_prompt=True, return_dict=True
    )['input_ids']
  ids = torch.tensor([ids])
  out = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
  return out[0, ids.shape[1] :].tolist()


def bits_per_byte(model: Any, words: Any, text: str) -> float:
  """Returns what transformers loses on the windows that kvjax picks."""
  ids = words(text, add_special_tokens=False)['input_ids']
  starts = np.linspace(0, len(ids) - LENGTH + 1, ROWS).astype(int)
  rows = torch.tensor([[0, *ids[s : s + LENGTH - 1]] for s in starts])
  with torch.no_grad():
    logits = model(rows).logits[:, :-1]
  loss = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), rows[:, 1:].flatten()
  )
  return float(loss) / math.log(2) * len(ids) / len(text.encode())


def run(name: str, *flags: str) -> None:
  subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *flags],
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
  )


def read(path: pathlib.Path, kind: str) -> list[dict[str, Any]]:
  found = map(json.loads, path.read_text().splitlines())
  return [record for record in found if record.get('record') == kind]


def main() -> None:
  text = (ROOT / 'docs' / 'design.md').read_text('utf-8')
  wrong = 0
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    model, words = write(path, text)
    (path / 'prompts.txt').write_text('\n'.join(PROMPTS))
    (path / 'text.txt').write_text(text)
    checkpoint = f'--checkpoint={path}'
    for chat in (True, False):
      out = path / f'{chat}.jsonl'
      flags = f'--prompts={path / "prompts.txt"}', f'--tokens={TOKENS}'
      run('generate', checkpoint, *flags, f'--out={out}', f'--chat={chat}')
      for record in read(out, 'text'):
        want = theirs(model, words, record['prompt'], chat)
        wrong += record['tokens'] != want
    sizes = f'--rows={ROWS}', f'--length={LENGTH}', f'--workdir={path}'
    run('perplexity', checkpoint, f'--text={path / "text.txt"}', *sizes)
    figures = read(path / 'perplexity.jsonl', 'perplexity')
    want = bits_per_byte(model, words, text)
  print(f'{wrong} of {2 * len(PROMPTS)} answers of {TOKENS} tokens are others')
  print(f'transformers {want:.6f} bits a byte')
  for record in figures:
    print(record['cache'], f'{record["bits_per_byte"]:.6f}')
  exact = [r['bits_per_byte'] for r in figures if r['cache'] != 'int8']
  sys.exit(wrong > 0 or max(abs(x - want) for x in exact) > 1e-4)


if __name__ == '__main__':
  main()
