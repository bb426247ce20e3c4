"""Weights in Hugging Face's llama layout: the trunk and the autoregressive level as a language model over one table.

At level 0 every input is a row of one table (separator, phonemes, languages, levels, tones, tasks, digits, codes of
prompt and response), so transformers' `LlamaForCausalLM` computes the same states from ids and position ids. Where
each kind of row begins, `vall_e_tables` in `config.json` says (`audio` are the prompts' codes); positions are those of
the model's sequence. The biases of the head, and the tables and heads of the levels above, which llama has no place
for, lie beside it in `vall_e.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path

import stateio
import torch

from vall_e.model.model import VallE
from vall_e.model.sequence import Tables
from vall_e.model.trunk import EPS, THETA

WEIGHTS = "model.safetensors"
REST = "vall_e.safetensors"


def export_llama(model: VallE, folder: Path) -> Path:
    """Write `config.json`, `model.safetensors` and `vall_e.safetensors` into a folder.

    Raises:
        ValueError: the model reads several codes a step (`delay`).
    """
    spec = model.spec
    if spec.delay:
        raise ValueError("a model with delay reads several codes a step, which llama's layout has no place for")
    state = {k: v.detach() for k, v in model.state_dict().items()}
    table = torch.cat(
        [model.static_table(), state["proms_emb.embeddings.0.weight"], state["resps_emb.embeddings.0.weight"]]
    )
    head = torch.zeros_like(table)
    first = len(table) - spec.classes[0]
    if spec.split_classifiers:
        head[first:] = state["classifiers.proj.0.weight"]
    else:
        head[first:] = state["classifier.weight"][: spec.classes[0]]
    trunk = {k: v for k, v in state.items() if k.startswith("model.")}
    folder.mkdir(parents=True, exist_ok=True)
    stateio.save({"model.embed_tokens.weight": table, "lm_head.weight": head, **trunk}, folder / WEIGHTS)
    stateio.save({k: v for k, v in state.items() if k not in trunk}, folder / REST)
    stateio.json_write(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(table),
            "hidden_size": spec.dim,
            "intermediate_size": round(spec.dim * spec.ffn),
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.heads,
            "hidden_act": "gelu",
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "max_position_embeddings": 22750,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": len(table) - 1,
            "torch_dtype": str(table.dtype).removeprefix("torch."),
            "vall_e": json.loads(json.dumps(spec.to_config())),
            "vall_e_tables": {**vars(Tables(spec)), "responses": first},
        },
        folder / "config.json",
        pretty=True,
    )
    return folder
