"""Exported in llama's layout, transformers computes what the model computes."""

import pytest
import torch

pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_logits(tiny, tmp_path):
    from transformers import LlamaForCausalLM
    from vall_e.hf import export_llama, llama_inputs

    model, samples, _, _ = tiny
    llama = LlamaForCausalLM.from_pretrained(export_llama(model, tmp_path / "llama")).eval()
    sample = samples[0].with_response(samples[0].response[:9])
    ids, positions = llama_inputs(model, sample)
    with torch.inference_mode():
        states = llama.model(input_ids=ids, position_ids=positions).last_hidden_state[0]
        codes = llama.lm_head(states)[:, -model.spec.classes[0] :] + model.classifiers.proj[0].bias
        expected = model.logits([sample])[0]
    torch.testing.assert_close(codes[-len(expected) :], expected, atol=1e-4, rtol=0)
