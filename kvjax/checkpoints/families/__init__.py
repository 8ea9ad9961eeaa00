"""One file a published family; `FAMILIES` is by `model_type`."""

from kvjax.checkpoints.families import deepseek_v3, gpt_oss, llama, mistral
from kvjax.checkpoints.family import Family

FAMILIES: dict[str, Family] = {
    'deepseek_v3': deepseek_v3.FAMILY,
    'gpt_oss': gpt_oss.FAMILY,
    'kimi_k2': deepseek_v3.FAMILY,
    'llama': llama.FAMILY,
    'mistral': mistral.FAMILY,
}
