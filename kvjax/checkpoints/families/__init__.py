"""One file a published family; `FAMILIES` is by `model_type`."""

from kvjax.checkpoints.families import (
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_bigcode,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from kvjax.checkpoints.family import Family

FAMILIES: dict[str, Family] = {
    'deepseek_v3': deepseek_v3.FAMILY,
    'falcon': falcon.FAMILY,
    'gemma': gemma.FAMILY,
    'gemma2': gemma2.FAMILY,
    'gemma3': gemma3.VISION,
    'gemma3_text': gemma3.FAMILY,
    'gpt2': gpt2.FAMILY,
    'gpt_bigcode': gpt_bigcode.FAMILY,
    'gpt_oss': gpt_oss.FAMILY,
    'kimi_k2': deepseek_v3.FAMILY,
    'llama': llama.FAMILY,
    'mistral': mistral.FAMILY,
    'mixtral': mixtral.FAMILY,
    'phi3': phi3.FAMILY,
    'qwen2': qwen2.FAMILY,
    'qwen3': qwen3.FAMILY,
    'qwen3_moe': qwen3_moe.FAMILY,
}
