"""Weights in Hugging Face's llama layout: the trunk and the autoregressive level as a language model over one table.

At level 0 every input is a row of one table (separator, phonemes, languages, levels, tones, tasks, digits, codes of
prompt and response), so transformers' `LlamaForCausalLM` computes the same states from ids and position ids. The
biases of the head, and the tables and heads of the levels above, which llama has no place for, lie beside it in
`vall_e.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path

import stateio
import torch

from vall_e.model.model import VallE
from vall_e.model.sequence import Batch, Request, Sample, Tables, lay_out
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
        },
        folder / "config.json",
        pretty=True,
    )
    return folder


def llama_inputs(model: VallE, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and position ids [1, T] of a sample at level 0, for the exported language model."""
    batch: Batch = lay_out([Request(sample, "ar", stop=False)], model.spec)
    audio = Tables(model.spec).audio
    # At level 0 a frame is one row: of the prompts' first table, or of the responses', which lie behind all prompts'.
    behind = (model.spec.levels - 1) * model.spec.audio_tokens
    rows = torch.where(batch.codes >= model.spec.levels * model.spec.audio_tokens, batch.codes - behind, batch.codes)
    ids = batch.rows.clone()
    is_code = ids >= audio
    ids[is_code] = audio + rows[ids[is_code] - audio]
    return ids[None], batch.positions[None]
