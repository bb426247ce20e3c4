"""Models from folders, files and a hub on loopback, through stages that hooks watch."""

from __future__ import annotations

import os
import pickle
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from trainloop.hooks import Hooks, ModelLoaded
from trainloop.hooks.model_cache import ModelCache
from trainloop.hooks.model_loader import ModelLoader, ModelLoadError, ModelSource, StageEnd, StageStart

HubServer = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))["HubServer"]
STAGES = ["resolve", "download", "load", "place", "ready"]


def needs(*packages: str) -> pytest.MarkDecorator:
    lacking = [p for p in packages if find_spec(p) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def load(source, **kwargs):
    return ModelLoader({"m": source}, **kwargs).load("m")


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def server():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def hub(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    from trainloop.hooks.hub import Hub

    return Hub(server.endpoint, tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_state_dict_of_a_file(tmp_path, suffix):
    net, path = nn.Linear(3, 2), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path)
    loaded = load(ModelSource.state_dict(path, lambda: nn.Linear(3, 2)))
    assert same(net, loaded)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    trained = load(ModelSource.state_dict(tmp_path, lambda: nn.Linear(3, 2), file=path.name), frozen=False)
    assert same(net, trained)
    assert trained.training
    assert all(p.requires_grad for p in trained.parameters())


def test_tied_tensors_that_the_file_has_once(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net = TiedHead()
    safetensors.save_model(net, tmp_path / "m.safetensors")
    assert len(safetensors.load_file(tmp_path / "m.safetensors")) == 1
    loaded = load(ModelSource.state_dict(tmp_path / "m.safetensors", TiedHead))
    assert same(net, loaded)
    assert loaded.head.weight is loaded.embed.weight


def test_all_keys_that_do_not_fit_are_listed(tmp_path):
    torch.save({"weight": torch.zeros(2, 9), "x": torch.zeros(1), "y": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(ModelLoadError) as e:
        load(ModelSource.state_dict(tmp_path / "m.pt", lambda: nn.Linear(3, 2)))
    assert "m.pt does not fit Linear: missing: bias; unexpected: x, y; of another shape: " in str(e.value)
    assert "weight (expected (2, 3), found (2, 9))" in str(e.value)
    net = nn.Linear(3, 2)
    for state in ({"weight": net.weight}, {**net.state_dict(), "x": net.bias}):
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(ModelLoadError, match=r"does not fit Linear: (missing: bias|unexpected: x)\n"):
            load(ModelSource.state_dict(tmp_path / "m.pt", lambda: nn.Linear(3, 2)))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_are_not_state_dicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = lambda name: ModelSource.state_dict(tmp_path / name, lambda: nn.Linear(3, 2))  # noqa: E731
    Path("m.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ModelLoadError, match="is not loaded: it could run code"):
        load(source("m.pt"))
    torch.save({"w": Malicious()}, "zip.pt")
    with pytest.raises(ModelLoadError, match="is not loaded: it could run code"):
        load(source("zip.pt"))
    assert not Path("ran").exists()
    torch.save(nn.Linear(3, 2).state_dict(), "torn.pt")
    Path("torn.pt").write_bytes(Path("torn.pt").read_bytes()[:-200])
    with pytest.raises(ModelLoadError, match=r"torn\.pt cannot be read as a state dict"):
        load(source("torn.pt"))
    torch.save({"model": {"w": torch.zeros(1)}, "step": 3}, "nested.pt")
    with pytest.raises(ModelLoadError, match="no mapping from name to tensor; found model, step"):
        load(source("nested.pt"))
    Path("m.h5").touch()
    with pytest.raises(ModelLoadError, match=r"m\.h5 is of a kind that is not known; expected .*\.safetensors, \.bin"):
        load(source("m.h5"))


def test_paths_that_are_not_there(tmp_path):
    build = lambda: nn.Linear(1, 1)  # noqa: E731
    for where in (tmp_path / "no", str(tmp_path / "no"), "./no", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is not there, and is no repository's name"):
            load(ModelSource.state_dict(where, build))
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"has no m\.pt; there is config\.json") as e:
        load(ModelSource.state_dict(tmp_path, build, file="m.pt"))
    assert e.value.__notes__ == ["in stage 'download' of model 'm'"]
    with pytest.raises(KeyError, match="no model 'x'; there are m"):
        ModelLoader({"m": build}).load("x")


def test_each_stage_is_told_before_and_after(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "m.pt")
    loader = ModelLoader({"m": ModelSource.state_dict(tmp_path / "m.pt", lambda: nn.Linear(3, 2))})
    hooks, seen = Hooks(), []
    hooks.attach(loader)
    hooks.on(StageStart, lambda e: seen.append((e.name, e.stage, "start")))
    hooks.on(StageEnd, lambda e: seen.append((e.name, e.stage, e.result)))
    hooks.on(ModelLoaded, lambda e: seen.append((e.name, "loaded", e.model)))
    model = loader.load("m")
    results = [tmp_path / "m.pt"] * 2 + [model] * 3
    expected = [x for s, r in zip(STAGES, results, strict=True) for x in (("m", s, "start"), ("m", s, r))]
    assert seen == [*expected, ("m", "loaded", model)]


def test_code_of_a_repository_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code would run code that comes with org/net"):
        ModelSource.pretrained("org/net", "transformers.AutoModel", trust_remote_code=True)
    with pytest.raises(ModelLoadError, match="has no from_pretrained"):
        load(ModelSource.pretrained(tmp_path, nn.Linear))
    with pytest.raises(ModelLoadError, match="trainloop has no Nothing"):
        load(ModelSource.pretrained(tmp_path, "trainloop.Nothing"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'strangers'"):
        load(ModelSource.pretrained(tmp_path, "strangers.Net"))


def test_a_state_dict_of_a_repository(server, hub):
    safetensors = pytest.importorskip("safetensors.torch")
    net = nn.Linear(3, 2)
    server.add("org/net", {"a.safetensors": safetensors.save(net.state_dict()), "other.bin": b"x" * 5000})
    source = ModelSource.state_dict("org/net", lambda: nn.Linear(3, 2), file="a.safetensors")
    assert same(net, load(source, hub=hub))
    assert [name for name, _ in server.gets] == ["a.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"org/net has no b\.safetensors"):
        load(ModelSource.state_dict("org/net", lambda: nn.Linear(3, 2), file="b.safetensors"), hub=hub)


def test_a_class_with_the_hub_mixin(server, hub, tmp_path):
    mixin = pytest.importorskip("huggingface_hub").PyTorchModelHubMixin

    class Net(nn.Module, mixin):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.linear = nn.Linear(width, 2)

    net = Net(width=5)
    net.save_pretrained(tmp_path / "saved")
    server.add("org/mixed", tmp_path / "saved")
    assert same(net, load(ModelSource.pretrained("org/mixed", Net), hub=hub))


@needs("transformers")
def test_a_transformers_model_of_the_hub(server, hub, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    net = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    net.save_pretrained(tmp_path / "saved")
    for other in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "modeling.py"):
        (tmp_path / "saved" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "saved" / other).write_bytes(b"x")
    server.add("org/gpt", tmp_path / "saved")
    models = {
        "by name": ModelSource.pretrained("org/gpt", "transformers.AutoModelForCausalLM"),
        "by class": ModelSource.pretrained(tmp_path / "saved", GPT2LMHeadModel),
    }
    size = sum(p.nbytes for p in net.parameters())
    with ModelCache(ModelLoader(models, hub=hub), size + 1000, disk=tmp_path / "offloaded") as cache:
        x = torch.arange(6)[None]
        with torch.no_grad():
            expected = net.eval()(x).logits
            for name in (*models, *models):
                with cache.use(name) as model:
                    assert same(net, model)
                    assert model.lm_head.weight is model.transformer.wte.weight
                    assert torch.equal(model(x).logits, expected)
        assert (cache.stats.loads, cache.stats.offloads) == (2, 3)
    assert sorted({name for name, _ in server.gets}) == ["config.json", "generation_config.json", "model.safetensors"]

    GPT2Model(net.config).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(
        (tmp_path / "other" / "config.json").read_text().replace('"n_layer": 1', '"n_layer": 2')
    )
    with pytest.raises(ModelLoadError, match=r"not have all weights of GPT2Model: .*h\.1\.attn\.c_attn\.bias, "):
        load(ModelSource.pretrained(tmp_path / "other", "transformers.AutoModel"))


@needs("diffusers")
def test_a_diffusers_pipeline_of_the_hub(server, hub, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=2,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(tmp_path / "saved")
    server.add("org/pipe", tmp_path / "saved")
    models = {
        "pipe": ModelSource.pretrained("org/pipe", "diffusers.DiffusionPipeline"),
        "unet": ModelSource.state_dict(
            "org/pipe", lambda: UNet2DModel.from_config(unet.config), file="unet/diffusion_pytorch_model.safetensors"
        ),
    }
    size = sum(p.nbytes for p in unet.parameters())
    with ModelCache(ModelLoader(models, hub=hub), size, disk=tmp_path / "offloaded") as cache:
        for name in ("pipe", "unet", "pipe"):
            with cache.use(name) as model:
                assert same(unet, model.unet if name == "pipe" else model)
        with cache.use("pipe") as pipe:
            assert isinstance(pipe, DDPMPipeline)
            assert pipe.scheduler.config.num_train_timesteps == 10
            assert not pipe.unet.training
            noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                assert torch.equal(pipe.unet(noise, 3).sample, unet.eval()(noise, 3).sample)


def test_a_missing_extra_is_named(tmp_path):
    """In a process where the imports are blocked, as if nothing had brought the packages."""
    (tmp_path / "m.safetensors").touch()
    script = f"""
import sys
from trainloop.hooks.dataset import open_dataset
from trainloop.hooks.hub import Hub
from trainloop.hooks.model_cache import ModelCache
from trainloop.hooks.model_loader import ModelLoader, ModelSource
heavy = ["transformers", "diffusers", "datasets", "huggingface_hub", "safetensors"]
assert not set(heavy) & set(sys.modules)
sys.modules |= dict.fromkeys(heavy)
load = lambda source: ModelLoader({{"m": source}}).load("m")
for make in (
    lambda: load(ModelSource.pretrained(".", "transformers.AutoModel")),
    lambda: load(ModelSource.pretrained(".", "diffusers.DiffusionPipeline")),
    lambda: open_dataset("."),
    lambda: Hub(),
    lambda: load(ModelSource.state_dict({str(tmp_path / "m.safetensors")!r}, object)),
):
    try:
        make()
    except ImportError as e:
        print(e)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    named = [line.partition("pip install ")[2] for line in out.stdout.splitlines()]
    assert named == [f"trainloop[{extra}]" for extra in ("transformers", "diffusers", "datasets", "hub", "hub")]
