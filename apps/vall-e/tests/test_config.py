import shutil
import warnings

import pytest
from basecfg import ConfigError, ConfigWarning
from vall_e.config import Config


@pytest.mark.parametrize("name", ["tiny", "micro_ckpt", "dataset"])
def test_existing_files_load_unchanged_and_say_what_to_remove(golden, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = Config.from_yaml(golden / name / "config.yaml")
    assert cfg.model.experimental.noncausal_masks
    assert cfg.hyperparameters.optimizer == "AdamW"
    said = [str(w.message) for w in caught if issubclass(w.category, ConfigWarning)]
    assert any("config.yaml:44:3: hyperparameters.torch_optimizer: has no effect any more" in s for s in said)
    assert len(said) == len(caught)


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
