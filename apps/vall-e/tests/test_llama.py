"""Exported in llama's layout, transformers computes what the model computes."""

import json

import pytest
import torch

pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_logits(tiny, tmp_path):
    from transformers import LlamaForCausalLM
    from vall_e.hf import export_llama

    model, samples, _, _ = tiny
    folder = export_llama(model, tmp_path / "llama")
    llama = LlamaForCausalLM.from_pretrained(folder).eval()
    sample = samples[0].with_response(samples[0].response[:9])
    # The sequence written down by the exported folder's own description.
    at = json.loads((folder / "config.json").read_text())["vall_e_tables"]
    sep = [at["separator"]]
    segments = [
        [*(at["phonemes"] + sample.phone_ids()), *sep],
        [at["languages"] + model.spec.language_row(sample.language), *sep],
        [at["levels"], *sep],
        [*(at["audio"] + sample.prompt[:, 0]), *sep],
        at["responses"] + sample.response[:, 0],
    ]
    ids = torch.tensor([[int(i) for s in segments for i in s]])
    positions = torch.tensor([[i for s in segments for i in range(len(s))]])
    with torch.inference_mode():
        states = llama.model(input_ids=ids, position_ids=positions).last_hidden_state[0]
        codes = llama.lm_head(states)[:, -model.spec.classes[0] :] + model.classifiers.proj[0].bias
        expected = model.logits([sample])[0]
    torch.testing.assert_close(codes[-len(expected) :], expected, atol=1e-4, rtol=0)
