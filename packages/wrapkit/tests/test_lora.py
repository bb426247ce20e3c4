"""Adapters: added without a change, trained, several at once, merged and unmerged to the bit, saved and loaded."""

import copy
import itertools
import json

import pytest
import torch
import wrapkit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from wrapkit import LoRA, PatternError, Policy, UndoOrderError, lora
from wrapkit.lora import LoRALayer

IDS = torch.arange(12).view(2, 6)


def shake(model):
    """Values for the adapters other than the zeros they start with."""
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.3)


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [(n, id(m)) for n, m in model.named_modules()]


def same(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(v, b[0][k]) for k, v in a[0].items())


@pytest.fixture
def adapted(language_model):
    model = language_model()
    handle = LoRA(4, policy=Policy(["layers"])).apply(model)
    shake(model)
    return model, handle


@pytest.mark.parametrize("form", ["wrap", "parametrize", "dora"])
def test_nothing_changes_at_first_and_undo_is_exact(language_model, form):
    model = language_model()
    before, expected, order = snapshot(model), model(IDS), [list(m._parameters) for m in model.modules()]
    objects = list(model.parameters())
    handle = LoRA(4, policy=Policy(["layers"]), form=form).apply(model)
    assert handle.changed == ["layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2"]
    assert torch.allclose(model(IDS), expected, atol=0 if form != "dora" else 1e-6)
    shake(model)
    assert not torch.allclose(model(IDS), expected, atol=1e-3)
    handle.undo()
    assert same(snapshot(model), before)
    assert torch.equal(model(IDS), expected)
    assert [list(m._parameters) for m in model.modules()] == order
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("form", ["wrap", "parametrize", "dora"])
def test_only_adapters_train_and_learn(language_model, train, form):
    model = language_model()
    LoRA(8, alpha=16, policy=Policy(["layers"]), form=form).apply(model)
    base = {k: v.clone() for k, v in lora.base_state(model).items()}
    optimizer = wrapkit.optimizer("adamw", model, lr=2e-2)
    losses = train(model, optimizer, 60)
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(v, base[k]) for k, v in lora.base_state(model).items())
    assert {n.rpartition("lora_")[1] or "magnitude" for n, p in model.named_parameters() if p.requires_grad} <= {
        "lora_",
        "magnitude",
    }


def test_train_base_leaves_the_rest_trainable(language_model):
    model = language_model()
    trainable = sum(p.requires_grad for p in model.parameters())
    LoRA(2, policy=Policy(["layers.0"]), train_base=True).apply(model)
    assert sum(p.requires_grad for p in model.parameters()) == trainable + 4


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 5), torch.randn(2, 3, 6)),
        (nn.Conv1d(6, 5, 3, stride=2, padding=1), torch.randn(2, 6, 9)),
        (nn.Conv2d(6, 5, (3, 2), dilation=2, padding_mode="reflect", padding=1), torch.randn(2, 6, 8, 8)),
        (nn.Conv1d(6, 5, 3), torch.randn(6, 9)),
        (nn.Embedding(7, 5), torch.randint(7, (2, 3))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_change_is_b_times_a_for_every_kind_of_layer(layer, x, dtype):
    layer = copy.deepcopy(layer).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    model = nn.Sequential(layer)
    LoRA(3, alpha=6, embeddings=True).apply(model)
    shake(model)
    wrapper = model[0]
    expected = copy.deepcopy(layer)
    expected.weight.data += 2 * wrapper.delta("default").detach()
    tolerance = 1e-10 if dtype == torch.float64 else 0.05
    assert torch.allclose(model(x), expected(x), atol=tolerance, rtol=tolerance)


def test_the_root_itself(language_model):
    model, x = nn.Linear(6, 5), torch.randn(2, 6)
    expected = model(x)
    handle = LoRA(2).apply(model)
    assert isinstance(model, LoRALayer)
    assert torch.equal(model(x), expected)
    shake(model)
    assert lora.merged_state(model).keys() == {"weight", "bias"}
    handle.undo()
    assert type(model) is nn.Linear
    assert torch.equal(model(x), expected)


def test_shared_and_tied_layers(language_model):
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    handle = LoRA(2).apply(model)
    assert model["a"] is model["b"][0]
    assert lora.base_state(model).keys() == {"a.weight", "a.bias", "b.0.weight", "b.0.bias"}
    handle.undo()
    tied = language_model()
    LoRA(2).apply(tied)
    assert tied.lm_head.base.weight is tied.embedding.weight


def test_attributes_of_the_base_can_still_be_read(adapted):
    layer = adapted[0].layers[0][0]
    assert (layer.in_features, layer.weight.dtype) == (16, torch.float32)
    with pytest.raises(AttributeError, match="nothing"):
        layer.nothing  # noqa: B018


class TestSeveral:
    @pytest.fixture
    def two(self, language_model):
        model = language_model()
        plain = model(IDS)
        first = LoRA(4, policy=Policy(["layers"])).apply(model)
        shake(model)
        one = model(IDS)
        second = LoRA(2, policy=Policy(["layers.1"]), name="voice").apply(model)
        return model, plain, one, first, second

    def test_a_second_one_leaves_the_first(self, two):
        model, plain, one, first, second = two
        assert lora.names(model) == ["default", "voice"]
        assert torch.equal(model(IDS), one)
        with pytest.raises(UndoOrderError, match="the adapter 'voice' has been added after 'default'"):
            first.undo()
        second.undo()
        assert torch.equal(model(IDS), one)
        first.undo()
        assert torch.equal(model(IDS), plain)

    def test_switched_and_scaled(self, two):
        model, plain, *_ = two
        shake(model)
        both = model(IDS)
        lora.disable(model)
        assert torch.equal(model(IDS), plain)
        lora.enable(model, "default")
        alone = model(IDS)
        lora.enable(model)
        assert torch.equal(model(IDS), both)
        lora.strength(model, "voice", 0.0)
        assert torch.equal(model(IDS), alone)
        lora.strength(model, "voice", 0.5)
        assert not torch.equal(model(IDS), alone)
        with pytest.raises(ValueError, match=r"no adapter 'voise' \(did you mean voice\?\); it has: default, voice"):
            lora.enable(model, "voise")

    def test_merged_together(self, two):
        model = two[0]
        shake(model)
        expected = model(IDS)
        with lora.merge(model):
            assert torch.allclose(model(IDS), expected, atol=1e-5)
        assert torch.equal(model(IDS), expected)


class TestMerge:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_fifty_times_leaves_every_bit(self, language_model, dtype):
        model = language_model().to(dtype)
        LoRA(4, policy=Policy(["layers"])).apply(model)
        shake(model)
        before, expected = snapshot(model), model(IDS)
        for _ in range(50):
            handle = lora.merge(model)
            merged = model(IDS)
            assert model.state_dict().keys() == before[0].keys()  # the sums are not in it
            handle.undo()
        assert same(snapshot(model), before)
        assert torch.equal(model(IDS), expected)
        assert torch.allclose(merged, expected, atol=1e-5 if dtype == torch.float32 else 0.1)

    def test_the_control_adding_and_subtracting_drifts(self):
        torch.manual_seed(0)
        weight, change = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
        moved = weight.clone()
        for _ in range(50):
            moved += change
            moved -= change
        assert not torch.equal(moved, weight)

    def test_an_export_computes_the_same_without_adapters(self, adapted, language_model):
        model, _ = adapted
        plain = language_model()
        plain.load_state_dict(lora.merged_state(model))
        assert torch.allclose(plain(IDS), model(IDS), atol=1e-5)
        with lora.merge(model):
            assert all(torch.equal(v, plain.state_dict()[k]) for k, v in lora.merged_state(model).items())

    def test_what_cannot_be_done(self, adapted, language_model):
        model, handle = adapted
        with pytest.raises(ValueError, match="nothing to merge in this TiedLanguageModel"):
            lora.merge(language_model())
        merged = lora.merge(model)
        with pytest.raises(ValueError, match=r"layers\.0\.0 is merged already"):
            lora.merge(model)
        with pytest.raises(ValueError, match="is merged: unmerge it before its strength is changed"):
            lora.strength(model, "default", 2.0)
        with pytest.raises(UndoOrderError, match="the adapter 'default' is merged"):
            handle.undo()
        merged.undo()
        handle.undo()


class TestInt8:
    @pytest.fixture
    def quantised(self, language_model):
        pytest.importorskip("bitsandbytes")
        model = language_model()
        wrapkit.replace(model, "bnb.int8", Policy(["layers"]))
        return model

    def test_adapters_train_over_it(self, quantised, train):
        LoRA(8, policy=Policy(["layers"])).apply(quantised)
        assert quantised.layers[0][0].lora_A["default"].dtype == torch.float32
        losses = train(quantised, wrapkit.optimizer("adamw", quantised, lr=2e-2), 40)
        assert losses[-1] < losses[0] - 0.2

    def test_merging_says_no_before_anything_changes(self, quantised):
        LoRA(8).apply(quantised)
        with pytest.raises(ValueError, match=r"the weight of a Linear8bitLt \(torch\.int8\) is quantised, and"):
            lora.merge(quantised)
        assert quantised.lm_head.merged is None

    @pytest.mark.parametrize("form", ["dora", "parametrize"])
    def test_forms_that_need_the_numbers_say_no(self, quantised, form):
        with pytest.raises(ValueError, match=rf'form="{form}" needs the numbers of the weight, and layers\.0\.0 is a'):
            LoRA(8, form=form, policy=Policy(["layers"])).apply(quantised)
        assert lora.names(quantised) == []
        assert quantised.norm.weight.requires_grad


class TestFiles:
    @pytest.mark.parametrize("where", ["adapter", "lora.sft"])
    @pytest.mark.parametrize("form", ["wrap", "dora"])
    def test_there_and_back(self, language_model, tmp_path, where, form):
        model = language_model()
        LoRA(4, alpha=6, policy=Policy(exclude=["lm_head"]), embeddings=form == "wrap", form=form).apply(model)
        shake(model)
        lora.save(model, tmp_path / where, metadata={"step": "3"})
        fresh = language_model()
        plain = fresh(IDS)
        handle = lora.load(fresh, tmp_path / where)
        assert torch.equal(fresh(IDS), model(IDS))
        assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
        handle.undo()
        assert torch.equal(fresh(IDS), plain)
        assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]

    def test_into_an_adapter_that_is_there(self, adapted, tmp_path, language_model):
        model, _ = adapted
        lora.save(model, tmp_path / "lora.sft")
        expected = model(IDS)
        shake(model)
        lora.load(model, tmp_path / "lora.sft")
        assert torch.equal(model(IDS), expected)

    def test_the_names_in_the_files(self, adapted, tmp_path):
        safetensors = pytest.importorskip("safetensors")
        lora.save(adapted[0], tmp_path / "x.sft")
        lora.save(adapted[0], tmp_path / "peft")
        with safetensors.safe_open(tmp_path / "x.sft", "pt") as file:
            assert {"layers.0.0.lora_A", "layers.0.0.lora_B"} <= set(file.keys())
        with safetensors.safe_open(tmp_path / "peft" / "adapter_model.safetensors", "pt") as file:
            assert "base_model.model.layers.0.0.lora_A.weight" in file.keys()  # noqa: SIM118
        config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)

    def test_another_models_adapter_lists_everything_and_changes_nothing(self, adapted, tmp_path, language_model):
        lora.save(adapted[0], tmp_path / "x.sft")
        other = language_model()
        other.layers = nn.ModuleList([nn.Sequential(nn.Linear(16, 8), nn.GELU())])
        before = snapshot(other)
        with pytest.raises(ValueError, match="does not fit this TiedLanguageModel") as error:
            lora.load(other, tmp_path / "x.sft")
        for told in ["no layer layers.1.0", "no layer layers.0.2", "layers.0.0.lora_B is (32, 4), expected (8, 4)"]:
            assert told in str(error.value)
        assert same(snapshot(other), before)

    def test_entirely_wrong_keys(self, language_model, tmp_path):
        save = pytest.importorskip("safetensors.torch").save_file
        save({"flora_x": torch.ones(2), "a.lora_A": torch.ones(2, 2)}, tmp_path / "x.sft")
        with pytest.raises(ValueError, match="unknown: flora_x; without their other half: a"):
            lora.load(language_model(), tmp_path / "x.sft")
        save({}, tmp_path / "empty.sft")
        with pytest.raises(ValueError, match="it holds no adapter"):
            lora.load(language_model(), tmp_path / "empty.sft")

    def test_a_parameter_that_only_sounds_like_one_is_not_saved(self, adapted, tmp_path):
        model, _ = adapted
        model.flora_x = nn.Parameter(torch.ones(2))
        lora.save(model, tmp_path / "x.sft")
        with pytest.importorskip("safetensors").safe_open(tmp_path / "x.sft", "pt") as file:
            assert not [k for k in file.keys() if "flora" in k]  # noqa: SIM118

    def test_an_adapter_that_is_not_there(self, adapted, tmp_path):
        with pytest.raises(ValueError, match="no adapter 'voice'"):
            lora.save(adapted[0], tmp_path / "x.sft", "voice")
        with pytest.raises(FileNotFoundError):
            lora.load(adapted[0], tmp_path / "nowhere.sft")

    @pytest.mark.parametrize("dora", [False, True])
    def test_peft_reads_ours_and_we_read_theirs(self, language_model, tmp_path, dora):
        peft = pytest.importorskip("peft")
        torch.manual_seed(1)
        options = {"r": 4, "lora_alpha": 6, "target_modules": r"layers\.\d\.[02]", "use_dora": dora}
        theirs = peft.get_peft_model(language_model(), peft.LoraConfig(**options))
        shake(theirs)
        theirs.save_pretrained(tmp_path / "theirs")
        ours = language_model()
        lora.load(ours, tmp_path / "theirs")
        assert torch.allclose(ours(IDS), theirs(IDS), atol=1e-5)
        lora.save(ours, tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(language_model(), tmp_path / "ours")
        assert torch.allclose(again(IDS), ours(IDS), atol=1e-5)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 17}, r"rank 17 is above the smaller side of layers\.0\.0 \(16 to 32\)"),
            ({"policy": Policy(["norm"])}, "no layer that pattern 'norm' covers can carry an adapter: norm: LayerNorm"),
            ({"policy": Policy(["embedding"])}, "embeddings get an adapter with embeddings=True only"),
        ],
    )
    def test_nothing_is_changed(self, language_model, options, message):
        model = language_model()
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            LoRA(**options).apply(model)
        assert same(snapshot(model), before)
        assert all(p.requires_grad for p in model.parameters())

    def test_patterns_groups_names_and_forms(self, language_model, adapted):
        with pytest.raises(PatternError):
            LoRA(policy=Policy(["nowhere"])).apply(language_model())
        with pytest.raises(ValueError, match="Conv1d has groups, which low-rank adapters do not fit"):
            LoRA(policy=Policy(["0"])).apply(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)))
        with pytest.raises(ValueError, match="no layer to adapt in this ReLU"):
            LoRA().apply(nn.ReLU())
        with pytest.raises(ValueError, match="has an adapter 'default' already; give this one another name"):
            LoRA(2, policy=Policy(["layers"])).apply(adapted[0])
        with pytest.raises(ValueError, match='is wrapped by another adapter, so its weight cannot take form="dora"'):
            LoRA(2, policy=Policy(["layers"]), name="x", form="dora").apply(adapted[0])
        model = language_model()
        LoRA(2, form="dora").apply(model)
        with pytest.raises(ValueError, match="is parametrized already"):
            LoRA(2, name="x").apply(model)

    @pytest.mark.parametrize(
        "options", [{"rank": 0}, {"dropout": 1.0}, {"name": "a.b"}, {"form": "x"}, {"form": "dora", "dropout": 0.1}]
    )
    def test_settings(self, options):
        with pytest.raises(ValueError, match=r"rank|dropout|name|form"):
            LoRA(**options)

    def test_optimizers_that_project_refuse_a_model_of_adapters(self, adapted):
        with pytest.raises(ValueError, match=r"apollo has nothing to do: none .* LoRA's factors are not"):
            wrapkit.optimizer("apollo", adapted[0])


def test_attention_is_left_alone():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "out": nn.Linear(4, 4)})
    assert LoRA(2).apply(model).changed == ["out"]


def test_dropout_acts_in_training_only(language_model):
    model = language_model()
    LoRA(4, dropout=0.5, policy=Policy(["layers"])).apply(model)
    shake(model)
    assert not torch.equal(model(IDS), model(IDS))
    model.eval()
    assert torch.equal(model(IDS), model(IDS))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    rank=st.integers(1, 6),
    cycles=st.integers(1, 3),
    data=st.data(),
)
def test_adding_merging_and_undoing_on_random_models(sizes, rank, cycles, data):
    layers = [nn.Linear(a, b, bias=data.draw(st.booleans())) for a, b in itertools.pairwise(sizes)]
    model, x = nn.Sequential(*layers), torch.randn(3, sizes[0])
    before, expected = snapshot(model), model(x)
    if rank > min(sizes):
        with pytest.raises(ValueError, match="above the smaller side"):
            LoRA(rank).apply(model)
        return
    for _ in range(cycles):
        with LoRA(rank).apply(model):
            shake(model)
            trained = model(x)
            with lora.merge(model):
                assert torch.allclose(model(x), trained, atol=1e-4, rtol=1e-4)
            assert torch.equal(model(x), trained)
    assert same(snapshot(model), before)
    assert torch.equal(model(x), expected)
