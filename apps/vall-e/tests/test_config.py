import json
import shutil
import warnings

import pytest
import yaml
from basecfg import ConfigError, ConfigWarning
from safetensors import safe_open
from vall_e.config import Config


def said(read, *arguments, **options):
    """What a reader gives, and the lines of its one warning without their places."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = read(*arguments, **options)
    assert len(caught) <= 1
    return cfg, {p.path: p.message for w in caught for p in w.message.problems}


@pytest.fixture
def load(golden, tmp_path):
    """Read the golden YAML file with one value put into it: what it says beyond what it says without."""
    plain = yaml.safe_load((golden / "tiny/config.yaml").read_text())
    _, before = said(Config.from_yaml, golden / "tiny/config.yaml")

    def load(key, value):
        data = json.loads(json.dumps(plain))
        node = data
        *steps, last = key.split(".")
        for step in steps:
            node = node[int(step)] if step.isdecimal() else node.setdefault(step, {})
        node[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data))
        cfg, after = said(Config.from_yaml, path)
        return cfg, {k: m for k, m in after.items() if k not in before or k == key}

    return load


@pytest.mark.parametrize("name", ["tiny", "micro_ckpt", "dataset"])
def test_existing_files_load_unchanged_and_say_what_to_change_in_one_warning(golden, name):
    with pytest.warns(ConfigWarning) as caught:
        cfg = Config.from_yaml(golden / name / "config.yaml")
    assert cfg.model.experimental.noncausal_masks
    assert cfg.hyperparameters.optimizer == "AdamW"
    assert len(caught) == 1
    lines = str(caught[0].message).splitlines()
    assert len(lines) < 6
    assert any("config.yaml:44:3: hyperparameters.torch_optimizer: has no effect any more" in line for line in lines)


def test_the_config_in_existing_weights_is_an_entry_of_models(golden, tmp_path):
    with safe_open(golden / "tiny/fp32.sft", "pt") as file:
        entry = json.loads(file.metadata()["config"])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"models": [entry]}))
    for read, path in ((Config.from_yaml, tmp_path / "c.yaml"), (Config.from_model, golden / "tiny/fp32.sft")):
        cfg, remarks = said(read, path)
        assert cfg.model.size["dim"] == 64
        assert list(remarks) == ["models.0.experimental.masking_ratio"]


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_every_entry_of_models_may_be_an_old_one(golden, tmp_path):
    data = yaml.safe_load((golden / "tiny/config.yaml").read_text())
    data["models"] = [{**data["models"][0], "name": f"m{i}", "training": not i} for i in range(6)]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    assert len(Config.from_yaml(tmp_path / "c.yaml").models) == 6


@pytest.mark.parametrize(
    "key",
    [
        "loras",
        "models.0.loss_factors",
        "models.0.experimental",
        "hyperparameters.optimizer_params",
        "trainer.deepspeed",
        "optimizations.model_offloading",
        "device",
    ],
)
def test_nothing_in_a_section_leaves_its_defaults(load, key):
    assert load(key, None)[1] == {}


@pytest.mark.parametrize(
    ("key", "value", "now", "meaning"),
    [
        # Each with its new key where it has one; those without a remark mean the same as ours.
        ("hyperparameters.scheduler", "", "", "constant"),
        ("hyperparameters.scheduler", None, "", "constant"),
        ("hyperparameters.scheduler", "ScheduleFree", "", "constant"),
        ("hyperparameters.scheduler", "OneCycle", "", "cosine"),
        ("hyperparameters.scheduler_type", "", "hyperparameters.scheduler", "constant"),
        ("hyperparameters.gradient_clipping", None, "", None),
        ("hyperparameters.gradient_clipping", 0, "", None),
        ("hyperparameters.scheduler_params", {"warmup_steps": 10}, "hyperparameters.warmup_steps", 10),
        ("dataset.max_utterances", 0, "", None),
        ("dataset.prompt_duration", 3, "dataset.prompt_duration_range", (3, 3)),
        ("models.0.tones", 0, "", 1),
        ("trainer.keep_last_checkpoints", 0, "", None),
        ("trainer.load_tag", "9500", "", 9500),
        ("trainer.load_tag", "latest", "", None),
        ("trainer.load_states", False, "", False),
        ("trainer.detect_grad_anomaly", True, "", True),
        ("trainer.activation_checkpointing", True, "trainer.gradient_checkpointing", True),
        ("trainer.deepspeed.zero_optimization_level", 3, "", 2),
        ("models.0.experimental.cfg_prom_dropout_p", 0.3, "dataset.prompt_dropout", 0.3),
        (
            "models.0.experimental.rvq_level_range",
            [1, 7],
            "models.0.experimental.rvq_levels_p",
            [0, 7, 6, 5, 4, 3, 2, 1],
        ),
    ],
)
def test_old_keys_and_values_are_read_as_what_they_mean(load, key, value, now, meaning):
    found, _ = load(key, value)
    for step in (now or key).split("."):
        found = found[int(step)] if step.isdecimal() else getattr(found, step)
    assert found == meaning


@pytest.mark.parametrize(
    ("key", "value", "remark"),
    [
        ("hyperparameters.scheduler", "ScheduleFree", "set hyperparameters.optimizer: schedulefree"),
        ("models.0.experimental.masking_ratio", 0.5, "drawn anew each time"),
        ("models.0.experimental.masking_ratio", "random", None),
        ("models.0.experimental.token_dropout_rate", 0.1, "codes are trained as they are"),
        ("models.0.experimental.token_dropout_rate", 0.0, None),
        ("models.0.experimental.layerskip_r", 2, None),
        ("trainer.deepspeed.compression_bits", 8, "not compressed"),
        ("trainer.deepspeed.amp", True, "trainer.amp"),
        ("trainer.deepspeed.zero_optimization_level", 3, "read as 2"),
        ("trainer.load_state_dict", True, "models[].path"),
        ("trainer.load_webui", True, "vall-e-webui"),
        ("trainer.save_tag", "step", None),
        ("inference.audio_backend", "vocos", "that of the weights"),
        ("inference.amp", True, "inference.weight_dtype"),
        ("dataset.reencode_on_concat", True, "without encoding"),
        ("dataset.resps_pad_silence_p", 0.1, "without silence"),
        ("dataset.resps_pad_silence_p", 0, None),
    ],
)
def test_what_is_done_instead_is_said(load, key, value, remark):
    _, remarks = load(key, value)
    assert list(remarks) == ([key] if remark else [])
    if remark:
        assert remark in remarks[key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [{size: {dmi: 3}}]", r"1:17: models\.0\.size: unknown key dmi; did you mean dim\?"),
        (
            "models: [{capabilities: [ar, nra]}]",
            r"capabilities\.1: expected .* found 'nra' \(str\); did you mean 'nar'",
        ),
        ("models: [{experimental: {layerskip: true}}]", "1:37: models.0.experimental.layerskip: expected False, found"),
        ("models: [{arch_type: retnet}]", r"models\.0\.arch_type: expected 'llama', found 'retnet'; such a model"),
        ("models: [{experimental: {kv_heads: 4}}]", r"models\.0\.experimental\.kv_heads: expected 0, found 4"),
        ("models: [{experimental: {rvq_level_range: 3}}]", "expected the first level and the last, found 3"),
        ("dataset: {tasks_list: []}", "tasks_list: list should have at least 1 item"),
        ("dataset: {prompt_duration_range: [5, 3]}", r"expected the shorter duration first, .* found \[5, 3\]"),
        ("dataset: {duration_range: [16, 1]}", r"expected the shorter duration first, .* found \[16, 1\]"),
        ("trainer: {load_tag: best}", "load_tag: expected a valid integer"),
        ("hyperparameters: {scheduler: cosin}", "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Config.from_yaml(tmp_path / "c.yaml")


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_an_architecture_that_is_not_this_one_is_refused(golden):
    with pytest.raises(ConfigError, match="interleave"):
        Config.from_yaml(golden / "tiny/config.yaml", overrides=["models.0.experimental.interleave=true"])


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_an_export_is_a_configuration(golden):
    cfg = Config.from_model(golden / "tiny/fp32.sft")
    assert cfg.model.size["dim"] == 64
    assert cfg.model.path == golden / "tiny/fp32.sft"


def test_one_model_is_trained(tmp_path):
    (tmp_path / "c.yaml").write_text("models: [{name: a}, {name: b}]")
    with pytest.raises(ValueError, match="one entry is to be trained, found"):
        _ = Config.from_yaml(tmp_path / "c.yaml").model


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_old_files_are_rewritten_with_their_comments(golden, tmp_path):
    from basecfg import migrate_file

    path = shutil.copy(golden / "tiny/config.yaml", tmp_path / "config.yaml")
    path.write_text("# mine\n" + path.read_text())
    assert "trainer.check_for_oom -> removed" in migrate_file(Config, path)
    assert path.read_text().startswith("# mine\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.from_yaml(path)
