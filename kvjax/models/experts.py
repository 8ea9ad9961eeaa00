"""Mixture of experts: a router that scores, a rule that picks, gated MLPs.

One class holds the published routers, since they differ in four choices only:
how scores are made of logits, whether a correction bias takes part in picking
(DeepSeek-V3, arXiv 2412.19437, section 2.1.2), whether whole groups of experts
are picked first, and whether the picked weights are renormalised.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.context import PARTITION
from kvjax.layers.linear import init_linear, linear, matmul
from kvjax.mesh.region import first_index, rows_spec, run_on_shards
from kvjax.mesh.rules import spec_of
from kvjax.models.mlp import ACTIVATIONS, MLP


@dataclasses.dataclass(frozen=True)
class Experts:
  """`sum_e weight_e expert_e(x)` over the top experts, plus a shared one.

  Attributes:
    num_experts: experts to choose from.
    top: experts that a token visits.
    hidden: F of one expert.
    activation: of the gate.
    score: 'softmax' over all experts, 'sigmoid' of each, or 'top_softmax'
      over the logits of the picked ones.
    renormalize: picked weights sum to one.
    scale: multiplies the weights.
    correction: each expert has a bias that counts when experts are picked, and
      not in their weights.
    groups: number of groups of experts; 1 for none.
    top_groups: groups that a token may pick from.
    group_score: a group counts for its best expert ('max') or its best two
      ('top2').
    shared: an MLP that every token visits; None for none.
    shared_gate: the sigmoid of a learned product with x multiplies what
      `shared` gives (Qwen1.5-MoE).
    scale_input: the weight of an expert multiplies what it reads, and not what
      it gives (Llama 4).
    bias: router and experts have biases (gpt-oss).
    clamp: bound of gate and up (gpt-oss: 7); its gate is then
      `x sigmoid(sharpness x)` and multiplies `up + 1`. None for a plain gate.
    sharpness: of that gate.
  """

  num_experts: int
  top: int
  hidden: int
  activation: str = 'silu'
  score: str = 'softmax'
  renormalize: bool = True
  scale: float = 1.0
  correction: bool = False
  groups: int = 1
  top_groups: int = 1
  group_score: str = 'max'
  shared: MLP | None = None
  shared_gate: bool = False
  scale_input: bool = False
  bias: bool = False
  clamp: float | None = None
  sharpness: float = 1.702

  def __post_init__(self):
    check_fields(
      self,
      at_least={'hidden': 1, 'groups': 1, 'top_groups': 1},
      above={'clamp': 0},
    )
    if not 1 <= self.top <= self.num_experts:
      raise ValueError(
        f'top={self.top} of num_experts={self.num_experts}: a token visits '
        'at least one and at most all experts.'
      )
    if self.num_experts % self.groups:
      raise ValueError(
        f'num_experts={self.num_experts} is not a multiple of '
        f'groups={self.groups}.'
      )
    if self.top_groups > self.groups:
      raise ValueError(
        f'top_groups={self.top_groups} exceeds groups={self.groups}.'
      )
    if self.score not in ('softmax', 'sigmoid', 'top_softmax'):
      raise ValueError(
        f"Unknown score={self.score!r}; known: 'softmax', 'sigmoid', "
        "'top_softmax'."
      )
    if self.scale_input and self.bias:
      raise ValueError(
        'scale_input=True with bias=True: a token of weight 0 would still get '
        'the biases of an expert. Choose one of the two.'
      )
    if self.shared_gate and self.shared is None:
      raise ValueError('shared_gate=True needs a shared MLP: give shared=.')
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'Unknown activation={self.activation!r}; known: '
        f'{", ".join(sorted(ACTIVATIONS))}.'
      )

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters for activations of `width`."""
    return self._count(width, self.num_experts)

  def num_active(self, width: int) -> int:
    """Returns elements that one token reads: its own experts'."""
    return self._count(width, self.top)

  def _count(self, width: int, visited: int) -> int:
    expert = 3 * width * self.hidden
    router = self.num_experts * width
    if self.bias:
      expert += 2 * self.hidden + width
      router += self.num_experts
    if self.correction:
      router += self.num_experts
    shared = 0 if self.shared is None else self.shared.num_params(width)
    shared += width if self.shared_gate else 0
    return router + visited * expert + shared

  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns parameters: router `[E, D]`, gate and up `[E, F, D]`, down."""
    keys = jax.random.split(key, 6)
    count, hidden = self.num_experts, self.hidden
    params: dict[str, Any] = {}
    params |= init_linear(
      keys[0], 'router', width, count, bias=self.bias, dtype=dtype
    )
    shapes = {
      'gate': (hidden, width),
      'up': (hidden, width),
      'down': (width, hidden),
    }
    for k, (name, (out, fan_in)) in zip(keys[1:4], shapes.items(), strict=True):
      weight = jax.random.normal(k, (count, out, fan_in), jnp.float32)
      params[name] = (weight * fan_in**-0.5).astype(dtype)
      if self.bias:
        params[f'{name}_bias'] = jnp.zeros((count, out), dtype)
    if self.correction:
      params['correction'] = jnp.zeros((count,), jnp.float32)
    if self.shared is not None:
      params['shared'] = self.shared.init(keys[4], width, dtype)
    if self.shared_gate:
      params |= init_linear(
        keys[5], 'shared_gate', width, 1, bias=False, dtype=dtype
      )
    return params

  def __call__(self, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Returns `[B, T, D]` from `[B, T, D]`."""
    with jax.named_scope('experts'):
      rows = x.reshape(-1, x.shape[-1])
      partition = PARTITION.value
      if partition is None:
        y = self._run(params, rows)
      else:
        y = self._run_on_mesh(partition, params, rows)
      y = y.astype(x.dtype).reshape(x.shape)
      if self.shared is not None:
        shared = self.shared(params['shared'], x)
        if self.shared_gate:
          shared *= jax.nn.sigmoid(linear(params, 'shared_gate', x))
        y = y + shared
      return y

  def route(
    self, params: Mapping[str, Any], rows: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns weights and indices `[M, top]` of the experts of `[M, D]`."""
    router = params['router'].astype(jnp.float32)
    logits = matmul(rows.astype(jnp.float32), router)
    if self.bias:
      logits = logits + params['router_bias'].astype(jnp.float32)[None, :]
    if self.score == 'top_softmax':
      top, picked = jax.lax.top_k(logits, self.top)
      return jax.nn.softmax(top, axis=-1) * self.scale, picked
    scores = (
      jax.nn.sigmoid(logits)
      if self.score == 'sigmoid'
      else jax.nn.softmax(logits, axis=-1)
    )
    choice = scores
    if self.correction:
      choice = choice + params['correction'].astype(jnp.float32)[None, :]
    _, picked = jax.lax.top_k(self._in_top_groups(choice), self.top)
    weights = jnp.take_along_axis(scores, picked, axis=-1)
    if self.renormalize:
      weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return weights * self.scale, picked

  def _in_top_groups(self, choice: jax.Array) -> jax.Array:
    if self.groups == 1:
      return choice
    grouped = choice.reshape(choice.shape[0], self.groups, -1)
    best = 2 if self.group_score == 'top2' else 1
    worth = jax.lax.top_k(grouped, best)[0].sum(-1)
    _, kept = jax.lax.top_k(worth, self.top_groups)
    allowed = jax.nn.one_hot(kept, self.groups).sum(1) > 0
    return jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(
      choice.shape
    )

  def _expert(self, params, index, rows):
    """Returns expert `index` of `[M, D]`, reading its weights only."""

    def pick(name):
      return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False),
        params[name],
      )

    def project(name, x):
      y = matmul(x, pick(name))
      return y + pick(f'{name}_bias').astype(y.dtype)[None] if self.bias else y

    gate, up = project('gate', rows), project('up', rows)
    if self.clamp is None:
      hidden = ACTIVATIONS[self.activation](gate) * up
    else:
      gate = jnp.minimum(gate, self.clamp)
      up = jnp.clip(up, -self.clamp, self.clamp)
      hidden = gate * jax.nn.sigmoid(self.sharpness * gate) * (up + 1)
    return project('down', hidden.astype(rows.dtype))

  def _weighted(self, params, index, rows, weight):
    """Returns expert `index` of `[M, D]` with the rows' weights."""
    if self.scale_input:
      scaled = (rows.astype(jnp.float32) * weight).astype(rows.dtype)
      return self._expert(params, index, scaled)
    return self._expert(params, index, rows) * weight

  def _run(self, params, rows):
    """Returns the weighted sum `[M, D]` of the picked experts, float32."""
    weights, picked = self.route(params, rows)
    # A visit reads the weights of one expert; a sweep reads all of them once.
    visits = picked.size <= self.num_experts
    run = self._visit if visits else self._sweep
    return run(params, rows, weights, picked)

  def _run_on_mesh(self, partition, params, rows):
    """Returns the same sum: every device runs its own experts or rows.

    One sum over devices follows where they share the experts of a row.
    """
    sizes = self.num_experts, self.hidden
    experts, hidden = partition.axes(('experts', 'hidden'), sizes)

    def run_own(params, rows):
      weights, picked = self.route(params, rows)
      count = jax.tree.leaves(params['gate'])[0].shape[0]
      own = picked - first_index(experts, count)
      # A negative index would count from the end.
      own = jnp.where((own >= 0) & (own < count), own, count)
      if self.bias and hidden:  # the first device that shares an expert adds it
        bias, is_first = params['down_bias'], jax.lax.axis_index(hidden) == 0
        params = {**params, 'down_bias': jnp.where(is_first, bias, 0)}
      visits = picked.size <= self.num_experts
      run = self._visit_own if visits else self._sweep
      y = run(params, rows, weights, own)
      return jax.lax.psum(y, (*experts, *hidden))

    inner = 'gate', 'up', 'gate_bias', 'up_bias'
    axes_of: dict[str, Any] = dict.fromkeys(inner, (experts, hidden))
    axes_of |= {'down': (experts, (), hidden), 'down_bias': (experts,)}
    outside = 'shared', 'shared_gate'
    params = {name: x for name, x in params.items() if name not in outside}

    def spec(name, x):
      axes = axes_of.get(name, ())
      return jax.tree.map(lambda leaf: spec_of(*axes[: leaf.ndim]), x)

    specs = {name: spec(name, x) for name, x in params.items()}
    by_rows = rows_spec(partition, rows)
    run = run_on_shards(run_own, partition, (specs, by_rows), by_rows)
    return run(params, rows)

  def _visit(self, params, rows, weights, picked):
    """Runs the pairs of token and expert one by one; reads no other expert."""
    owner = jnp.repeat(jnp.arange(rows.shape[0], dtype=jnp.int32), self.top)

    def visit(y, pair):
      token, expert, weight = pair
      row = jax.lax.dynamic_slice_in_dim(rows, token, 1)
      out = self._weighted(params, expert, row, weight)
      return y.at[token].add(out[0]), None

    pairs = owner, picked.reshape(-1), weights.reshape(-1)
    zeros = jnp.zeros(rows.shape, jnp.float32)
    return jax.lax.scan(visit, zeros, pairs)[0]

  def _visit_own(self, params, rows, weights, picked):
    """Runs the pairs whose expert is here: indices below the number of them."""
    count = jax.tree.leaves(params['gate'])[0].shape[0]
    picked, weights = picked.reshape(-1), weights.reshape(-1)
    is_here = picked < count
    order = jnp.argsort(~is_here, stable=True)

    def visit(index, y):
      pair = order[index]
      token = pair // self.top
      row = jax.lax.dynamic_slice_in_dim(rows, token, 1)
      out = self._weighted(params, picked[pair], row, weights[pair])
      return y.at[token].add(out[0])

    zeros = jnp.zeros(rows.shape, jnp.float32)
    return jax.lax.fori_loop(0, jnp.sum(is_here), visit, zeros)

  def _sweep(self, params, rows, weights, picked):
    """Runs every expert over all tokens; tokens of others have weight 0."""
    count = jax.tree.leaves(params['gate'])[0].shape[0]
    # A scatter would do the same; `kvjax.liveness` cannot follow its indices.
    gates = jnp.sum(jax.nn.one_hot(picked, count) * weights[..., None], axis=1)

    def sweep(y, expert):
      gate = jax.lax.dynamic_index_in_dim(gates, expert, axis=1)
      return y + self._weighted(params, expert, rows, gate), None

    order = jnp.arange(count, dtype=jnp.int32)
    zeros = jnp.zeros(rows.shape, jnp.float32)
    return jax.lax.scan(sweep, zeros, order)[0]
