"""Files of weights as people have them: which file in a folder, what it says of itself, and what is wrong with it."""

import json
import shutil

import numpy as np
import pytest
import stateio
import torch
from vall_e import Sample, load_model
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.weights import WeightsError, load_weights


@pytest.fixture
def held(golden) -> dict:
    """What the tiny model's file holds."""
    return stateio.load(golden / "tiny/fp32.sft")


def changed(held: dict, **experimental) -> dict:
    return held | {"config": held["config"] | {"experimental": held["config"]["experimental"] | experimental}}


def test_a_checkpoint_is_found_by_its_own_folder_whatever_the_model_is_called(prepared, tmp_path):
    source = next(p for p in (prepared / "ckpt/ar+nar").iterdir() if p.is_dir())
    folder = tmp_path / "voice" / source.name
    shutil.copytree(source, folder)
    shutil.copy(prepared / "ckpt/ar+nar/fp32.sft", tmp_path / "voice")
    manifest = stateio.json_read(folder / "manifest.json")
    stateio.json_write(manifest | {"engines": ["voice"]}, folder / "manifest.json")
    (folder / "ar+nar.sft").rename(folder / "voice.sft")
    (tmp_path / "voice/latest").write_text(source.name)
    models = [load_model(folder), load_model(tmp_path / "voice")]
    for name, tensor in stateio.load(folder / "voice.sft")["module"].items():
        assert name.startswith("codec.") or all(torch.equal(m.state_dict()[name], tensor) for m in models)


def test_tensors_alone_load_with_a_configuration(held, tmp_path):
    for name, prefix in (("flat.sft", ""), ("flat.pth", "module."), ("compiled.pth", "_orig_mod.")):
        stateio.save({prefix + k: v for k, v in held["module"].items()}, tmp_path / name)
        model = load_weights(tmp_path / name, config=held["config"]).model
        assert torch.equal(model.sep, held["module"]["sep"])
        with pytest.raises(WeightsError, match="holds no `config`"):
            load_weights(tmp_path / name)


@pytest.mark.parametrize(
    "flags",
    [
        {"kv_heads": 2},
        {"predict_causally": True},
        {"causal_size": 2},
        {"interleave": True},
        {"logit_normalization": 1},
        {"use_sliding_attention_mask": True},
        {"layerskip": True},
        {"audio_embedding_mode": "exclusive"},
        {"tie_classifier_to_embedding": True},
        {"audio_embedding_sums": "foo"},
        {"noncausal_masks": "yes"},
    ],
    ids=lambda f: next(iter(f)),
)
def test_another_architecture_is_refused_by_name(held, tmp_path, flags):
    stateio.save(changed(held, **flags), tmp_path / "other.sft")
    with pytest.raises(WeightsError, match=f"another architecture.*experimental.{next(iter(flags))} is"):
        load_model(tmp_path / "other.sft")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"version": 7}, "version is 7, expected 5"),
        ({"arch_type": "mamba"}, "arch_type is 'mamba'"),
        ({"size": {"dim": 64, "layers": 2}}, "heads missing"),
        ({"size": {"dim": 64, "heads": 4, "layers": 3}}, "says layers 3, not 2"),
        ({"size": "full"}, "says dim 1024, not 64 and layers 12, not 2"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(held, tmp_path, config, message):
    stateio.save(held | {"config": held["config"] | config}, tmp_path / "other.sft")
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "other.sft")


def test_a_checkpoint_takes_its_own_entry_of_the_configuration(held, tmp_path):
    folder = tmp_path / "ckpt/student/5"
    folder.mkdir(parents=True)
    stateio.save({"module": held["module"]}, folder / "state.sft")
    entries = [{"name": "teacher", "size": {"dim": 64, "heads": 2, "layers": 2}}, held["config"] | {"name": "student"}]
    (tmp_path / "config.yaml").write_text(json.dumps({"models": entries}))
    assert load_model(folder).spec.heads == 4
    (tmp_path / "config.yaml").write_text(json.dumps({"models": [entries[0], entries[0]]}))
    with pytest.raises(WeightsError, match="holds no `config`"):
        load_model(folder)


def test_numbers_that_are_none_are_refused(held, tmp_path):
    held["module"]["model.norm.weight"] = held["module"]["model.norm.weight"].clone()
    held["module"]["model.norm.weight"][3] = torch.nan
    stateio.save(held, tmp_path / "diverged.sft")
    with pytest.raises(WeightsError, match=r"model\.norm\.weight holds NaN or infinity"):
        load_model(tmp_path / "diverged.sft")


def test_one_classifier_for_all_has_the_rows_it_has(held, tmp_path):
    spec = ModelSpec.from_config(held["config"])
    rows = spec.audio_tokens + 1
    module = {k: v for k, v in held["module"].items() if not k.startswith("classifiers.")}
    module["classifier.weight"] = held["module"]["classifiers.proj.0.weight"]
    module["classifier.bias"] = held["module"]["classifiers.proj.0.bias"]
    stateio.save(changed(held, split_classifiers=False) | {"module": module}, tmp_path / "one.sft")
    model, split = load_model(tmp_path / "one.sft"), VallE(spec)
    split.load_state_dict(held["module"])
    sample = Sample([1, 5, 2], None, np.zeros((4, 8), int))
    assert model.classifier.weight.shape[0] == rows
    torch.testing.assert_close(model.logits([sample])[0], split.eval().logits([sample])[0])
    assert model.logits([sample], level=3)[0].shape == (4, spec.audio_tokens)
    with pytest.raises(ValueError, match="they were not made for it"):
        model.logits([sample], task="stt")


def test_a_device_that_is_not_here_is_said(golden):
    with pytest.raises(ValueError, match="device: 'nowhere'"):
        load_weights(golden / "tiny/fp32.sft", "nowhere")


def test_languages_of_ones_own_are_kept_by_name(held, tmp_path):
    names = ["en", "ja", "de", "fr", "zh", "ko", "es"]
    spec = ModelSpec.from_config(held["config"] | {"langs": names})
    assert (spec.langs, spec.language_row("es"), spec.language_row(3)) == (7, 6, 3)
    assert ModelSpec.from_config(spec.to_config()).languages == tuple(names)
    torch.manual_seed(0)
    stateio.save({"module": VallE(spec).state_dict(), "config": spec.to_config()}, tmp_path / "es.sft")
    model = load_model(tmp_path / "es.sft")
    codes = np.zeros((3, 8), int)
    spanish, english = (model.loss([Sample([1, 2], codes, codes, language)]) for language in ("es", "en"))
    assert spanish != english
    with pytest.raises(ValueError, match="this model knows en, ja, de, fr, zh, ko, es"):
        model.loss([Sample([1, 2], codes, codes, "it")])
    with pytest.raises(ValueError, match="each once"):
        ModelSpec.from_config(held["config"] | {"langs": ["en", "en"]})
