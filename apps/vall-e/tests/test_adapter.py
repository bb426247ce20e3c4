"""Adapters from training to speech: in every form, alone or merged, and on the weights they were trained on only."""

import numpy as np
import pytest
import stateio
import torch
import wrapkit
from vall_e import Sample
from vall_e.adapter import AdapterError, about, applied, export
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import NaiveTokenizer
from vall_e.weights import WeightsError, load_weights, weights_file

SPEC = ModelSpec(dim=16, heads=2, layers=2, ffn=2, audio_tokens=8, phoneme_tokens=9, text_tokens=1, levels=2)
FORMS = {
    "wrap": {},
    "parametrize": {"form": "parametrize"},
    "embeddings": {"form": "parametrize", "embeddings": True},
    "dora": {"form": "dora"},
}


def base(seed: int = 0) -> VallE:
    torch.manual_seed(seed)
    return VallE(SPEC).eval()


def logits(model: VallE) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return model.logits([Sample([1, 5, 2], rng.integers(0, 8, (3, 2)), rng.integers(0, 8, (6, 2)))])[0].detach()


@pytest.fixture
def weights(tmp_path):
    held = weights_file(base().state_dict(), SPEC, tokenizer=NaiveTokenizer(), codec=None, settings={}, stats={})
    stateio.save(held, tmp_path / "fp32.sft")
    return tmp_path / "fp32.sft"


def adapted(path, seed: int = 0, **form) -> torch.Tensor:
    """Write an adapter that changes a good deal; the logits with it."""
    model = base(seed)
    wrapkit.LoRA(1, 4.0, name="mine", **form).apply(model)  # of rank 1: a tone is one row
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    wrapkit.lora.save(model, path, "mine", about(model, {"name": "mine"}))
    return logits(model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".sft", ".pth"])
def test_it_speaks_on_its_base_in_every_form(weights, tmp_path, form, suffix):
    expected = adapted(tmp_path / "lora.sft", **FORMS[form])
    path = tmp_path / f"again{suffix}"
    export(tmp_path / "lora.sft", path, "float32")
    torch.testing.assert_close(logits(load_weights(weights, lora=path).model), expected, atol=1e-5, rtol=1e-5)
    assert (logits(base()) - expected).abs().max() > 1e-2


def test_alone_it_takes_another_dtype(weights, tmp_path):
    expected = adapted(tmp_path / "lora.sft")
    export(tmp_path / "lora.sft", tmp_path / "half.sft", "bfloat16")
    assert {t.dtype for t in stateio.load(tmp_path / "half.sft")["module"].values()} == {torch.bfloat16}
    near = logits(load_weights(weights, lora=tmp_path / "half.sft").model)
    torch.testing.assert_close(near, expected, atol=0.02, rtol=0.02)


def test_a_folder_of_peft_applies(weights, tmp_path):
    model = base()
    wrapkit.LoRA(2, 4.0, name="mine").apply(model)
    wrapkit.lora.save(model, tmp_path / "peft", "mine")
    load_weights(weights, lora=tmp_path / "peft")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(AdapterError, match="no adapter in PEFT's layout"):
        load_weights(weights, lora=tmp_path / "nothing")


def test_the_base_may_have_another_dtype(tmp_path):
    adapted(tmp_path / "lora.sft")
    applied(base().bfloat16().float(), tmp_path / "lora.sft", 1.0)


def test_what_does_not_belong_is_refused(weights, tmp_path):
    adapted(tmp_path / "other.sft", seed=1)
    with pytest.raises(AdapterError, match="was trained on other weights"):
        load_weights(weights, lora=tmp_path / "other.sft")
    adapted(tmp_path / "lora.sft")
    held = stateio.load(tmp_path / "lora.sft")
    name = next(iter(held["module"]))
    broken = {
        "nan": held | {"module": held["module"] | {name: torch.full_like(held["module"][name], torch.nan)}},
        "part": held | {"module": {k: v for k, v in held["module"].items() if "layers.1" in k}},
        "none": {"module": held["module"]},
    }
    for what, message in (("nan", "NaN or infinity"), ("part", "incomplete: no values"), ("none", "not an adapter")):
        stateio.save(broken[what], tmp_path / f"{what}.sft")
        with pytest.raises(AdapterError, match=message):
            load_weights(weights, lora=tmp_path / f"{what}.sft")
    (tmp_path / "text.sft").write_text("no")
    with pytest.raises(AdapterError, match="not an adapter"):
        load_weights(weights, lora=tmp_path / "text.sft")
    with pytest.raises(AdapterError, match="no such file"):
        load_weights(weights, lora=tmp_path / "gone.sft")
    with pytest.raises(WeightsError, match="holds an adapter"):
        load_weights(tmp_path / "lora.sft")
