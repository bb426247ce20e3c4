"""The factory, its rules, the guard, and each optimizer behind a name."""

import copy
import io

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import BackendUnavailable, MultiOptimizer, NonFiniteGradient, Policy, Rule
from wrapkit.optim import DEFAULT_RULES, OPTIMIZERS, Muon, orthogonalise, sort_parameters

NEEDS = {
    "prodigy": "prodigyopt",
    "dadapt": "dadaptation",
    "schedulefree": "schedulefree",
    "torchao": "torchao",
}


def need(name):
    package = next((p for prefix, p in NEEDS.items() if name.startswith(prefix)), None)
    package = package or ("bitsandbytes" if name.endswith("8bit") else None)
    if package:
        pytest.importorskip(package)


def options(name):
    """Settings under which each of them learns the tiny task in a few steps."""
    return {"sgd": {"lr": 0.5}, "schedulefree-sgd": {"lr": 0.5}, "sgd8bit": {"lr": 0.1}, "lion8bit": {"lr": 1e-3}}.get(
        name, {} if name.startswith(("prodigy", "dadapt", "adagrad", "adafactor")) else {"lr": 5e-3}
    )


@pytest.fixture
def eager():
    """torchao compiles its steps, which takes a minute and changes nothing here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_the_loss_and_resumes_from_a_weights_only_file(name, language_model, train):
    need(name)
    model = language_model()
    optimizer = wrapkit.optimizer(name, model, **options(name))
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(model, optimizer, 5)
    file.seek(0)
    stored = torch.load(file, weights_only=not name.startswith("torchao"))
    twin = language_model()
    twin.load_state_dict(stored["model"])
    resumed = wrapkit.optimizer(name, twin, **options(name))
    resumed.load_state_dict(stored["optimizer"])
    assert train(twin, resumed, 5) == expected


class TestRules:
    def groups(self, model, **kw):
        return {n: g for g in sort_parameters(model, **kw) for n in g["names"]}

    def test_defaults(self, language_model):
        groups = self.groups(language_model())
        hidden = {n for n, g in groups.items() if g["low_rank"]}
        plain = {n for n, g in groups.items() if g.get("weight_decay") == 0.0}
        assert hidden == {f"layers.{i}.{j}.weight" for i in (0, 1) for j in (0, 2)}
        assert plain == groups.keys() - hidden  # biases, norms, and the embedding with the head tied to it
        assert "lm_head.weight" not in groups

    def test_what_is_tied_to_an_embedding_is_one_under_any_name(self):
        model = nn.ModuleDict({"first": nn.Linear(4, 5, bias=False), "table": nn.Embedding(5, 4)})
        model["first"].weight = model["table"].weight
        assert self.groups(model)["first.weight"]["low_rank"] is False

    def test_a_head_that_is_not_tied_decays_but_is_no_hidden_matrix(self, language_model):
        model = language_model()
        model.lm_head = nn.Linear(16, 20)
        group = self.groups(model)["lm_head.weight"]
        assert group["low_rank"] is False
        assert "weight_decay" not in group

    def test_a_long_bias_and_a_row_are_vectors(self):
        model = nn.ParameterDict({"row": torch.zeros(1, 1024), "bias": torch.zeros(1024), "w": torch.zeros(4, 4)})
        assert {n: g["low_rank"] for n, g in self.groups(model).items()} == {"row": False, "bias": False, "w": True}

    def test_later_rules_win(self, language_model):
        rules = (
            *DEFAULT_RULES,
            Rule("layers.0", low_rank=False, options={"lr": 1.0}),
            Rule(Policy(["norm"]), options={"lr": 2.0}),
        )
        groups = self.groups(language_model(), rules=rules)
        assert groups["layers.0.0.weight"]["lr"] == 1.0
        assert groups["layers.0.0.weight"]["low_rank"] is False
        assert groups["norm.bias"]["lr"] == 2.0
        assert groups["norm.bias"]["weight_decay"] == 0.0

    def test_frozen_parameters_and_policies(self, language_model):
        model = language_model()
        model.norm.requires_grad_(False)
        assert set(self.groups(model, policy=Policy(exclude=["layers"]))) == {"embedding.weight"}
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="nothing to optimise: the policy and requires_grad"):
            wrapkit.optimizer("adamw", model)

    def test_groups_by_hand_are_taken_as_they_are(self, language_model):
        model = language_model()
        built = wrapkit.optimizer("adamw", [{"params": [model.norm.weight], "lr": 3.0, "weight_decay": 0.7}])
        assert built.param_groups[0]["lr"] == 3.0
        assert built.param_groups[0]["weight_decay"] == 0.7
        assert len(wrapkit.optimizer("sgd", model.parameters()).param_groups) == 1
        with pytest.raises(ValueError, match="already sorted"):
            wrapkit.optimizer("adamw", model.parameters(), policy=Policy())
        with pytest.raises(ValueError, match="no parameters given"):
            wrapkit.optimizer("adamw", [])


class TestGuard:
    def poison(self, model, value):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.layers[1][2].weight.grad[0, 0] = value

    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    @pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "adagrad"])
    def test_nothing_is_touched(self, language_model, train, name, value):
        model = language_model()
        optimizer = wrapkit.optimizer(name, model, lr=1e-2)
        train(model, optimizer, 2)
        weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        self.poison(model, value)
        with pytest.raises(
            NonFiniteGradient, match=r"layers\.1\.2\.weight are not finite. Nothing was updated"
        ) as error:
            optimizer.step()
        assert error.value.names == ["layers.1.2.weight"]
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        assert str(optimizer.state_dict()) == str(state)
        optimizer.zero_grad()
        assert all(loss == loss for loss in train(model, optimizer, 3))

    def test_skip(self, language_model):
        model = language_model()
        optimizer = wrapkit.optimizer("adamw", model, nonfinite="skip")
        before = copy.deepcopy(model.state_dict())
        self.poison(model, float("inf"))
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_without_the_guard_it_poisons(self, language_model):
        """The control."""
        model = language_model()
        optimizer = wrapkit.optimizer("adamw", model, nonfinite="ignore")
        self.poison(model, float("inf"))
        optimizer.step()
        assert not all(torch.isfinite(v).all() for v in model.state_dict().values())

    def test_large_gradients_are_not_infinite_ones(self, language_model):
        model = language_model()
        optimizer = wrapkit.optimizer("adamw", model)
        self.poison(model, 1e30)
        optimizer.step()

    def test_gradients_of_a_closure_are_checked_after_it_ran(self, language_model):
        model = language_model()
        optimizer = wrapkit.optimizer("adamw", model)

        def closure():
            self.poison(model, float("nan"))
            return torch.tensor(1.0)

        with pytest.raises(NonFiniteGradient):
            optimizer.step(closure)
        with pytest.raises(NonFiniteGradient):
            optimizer.step(closure=closure)

    def test_unknown_action(self, language_model):
        with pytest.raises(ValueError, match="nonfinite must be raise, skip or ignore, got 'hope'"):
            wrapkit.optimizer("adamw", language_model(), nonfinite="hope")


class TestMulti:
    @pytest.fixture
    def pair(self):
        a, b = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
        return a, b, MultiOptimizer({"sgd": torch.optim.SGD([a], lr=0.1), "adam": torch.optim.AdamW([b], lr=0.1)})

    def test_it_is_one_optimizer(self, pair):
        a, b, multi = pair
        assert isinstance(multi, torch.optim.Optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(multi, 1, gamma=0.5)
        calls = []

        def closure():
            calls.append(1)
            multi.zero_grad()
            loss = (a.sum() + b.sum()) ** 2
            loss.backward()
            return loss

        assert multi.step(closure) == 64
        assert calls == [1]
        scheduler.step()
        assert [g["lr"] for part in multi.parts.values() for g in part.param_groups] == [0.05, 0.05]
        assert set(multi.state) == {b}
        assert not torch.equal(a, torch.ones(2, 2))
        assert not torch.equal(b, torch.ones(2, 2))

    def test_state_in_torchs_layout(self, pair):
        a, b, multi = pair
        for p in (a, b):
            p.grad = torch.ones_like(p)
        multi.step()
        state = multi.state_dict()
        assert [g["params"] for g in state["param_groups"]] == [[0], [1]]
        assert state["state"][1]["exp_avg"].shape == (2, 2)
        multi.load_state_dict(state)
        assert set(multi.state) == {b}
        assert multi.state[b]["step"] == 1
        with pytest.raises(KeyError):
            multi.state[a]
        assert multi.state_dict()["state"].keys() == {1}  # looking up creates nothing
        wrong = copy.deepcopy(state)
        wrong["param_groups"].reverse()
        with pytest.raises(ValueError, match="the state holds groups"):
            multi.load_state_dict(wrong)

    def test_groups_added_later(self, pair):
        a, _, multi = pair
        c, d = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        multi.add_param_group({"params": [c], "part": "sgd"})
        multi.add_param_group({"params": d})
        assert [len(p.param_groups) for p in multi.parts.values()] == [2, 2]
        assert len(multi.param_groups) == 4
        with pytest.raises(ValueError, match="optimised already"):
            multi.add_param_group({"params": [a]})
        with pytest.raises(ValueError, match="no part 'lion'; parts are sgd, adam"):
            multi.add_param_group({"params": [nn.Parameter(torch.ones(1))], "part": "lion"})

    def test_copies_step_by_themselves(self, pair):
        a, _, multi = pair
        twin = copy.deepcopy(multi)
        own = twin.param_groups[0]["params"][0]
        own.grad = torch.ones_like(own)
        twin.step()
        assert not torch.equal(own, a)

    def test_overlap_and_nothing(self, pair):
        a = pair[0]
        with pytest.raises(ValueError, match="is in x and y"):
            MultiOptimizer({"x": torch.optim.SGD([a]), "y": torch.optim.SGD([a])})
        with pytest.raises(ValueError, match="at least one"):
            MultiOptimizer({})


class TestMuon:
    @pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
    def test_singular_values_land_near_one(self, shape):
        torch.manual_seed(0)
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.3

    def test_hidden_matrices_only(self, language_model):
        model = language_model()
        built = wrapkit.optimizer("muon", model, lr=1e-3)
        assert {tuple(p.shape) for g in built.parts["muon"].param_groups for p in g["params"]} == {(32, 16), (16, 32)}
        assert any(p is model.embedding.weight for g in built.parts["adamw"].param_groups for p in g["params"])

    def test_a_first_step_in_closed_form(self):
        weight = nn.Parameter(torch.zeros(4, 9))
        gradient = torch.randn(4, 9)
        weight.grad = gradient.clone()
        Muon([weight], lr=0.1, weight_decay=0.0).step()
        # momentum 0.05 g, looked ahead: proportional to g, and orthogonalising ignores the scale
        assert torch.allclose(weight, -0.1 * 0.2 * 3 * orthogonalise(gradient), atol=1e-4)

    def test_convolutions_are_flattened_and_vectors_refused(self):
        conv = nn.Conv1d(4, 8, 3)
        conv.weight.grad = torch.randn_like(conv.weight)
        Muon([conv.weight]).step()
        with pytest.raises(ValueError, match=r"Muon takes matrices, got a parameter of shape \(8,\)"):
            Muon([conv.bias])
        with pytest.raises(ValueError, match="none of the parameters is a hidden matrix"):
            wrapkit.optimizer("muon", nn.LayerNorm(4))


def test_schedule_free_follows_the_models_mode(language_model, train):
    pytest.importorskip("schedulefree")
    model, ids = language_model(), torch.arange(8).view(1, 8)
    optimizer = wrapkit.optimizer("schedulefree", model, lr=1e-2)
    train(model, optimizer, 10)
    training_point = copy.deepcopy(model.state_dict())
    model.eval()
    model(ids)
    assert optimizer.param_groups[0]["train_mode"] is False
    assert not torch.equal(model.norm.weight, training_point["norm.weight"])
    copied = copy.deepcopy(model)
    copied.train()
    copied(ids)  # a copy (an average, say) must not move the optimizer
    assert optimizer.param_groups[0]["train_mode"] is False
    model.train()
    train(model, optimizer, 1)
    assert optimizer.param_groups[0]["train_mode"] is True


def test_8_bit_sgd_needs_momentum(language_model):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="sgd8bit needs momentum > 0"):
        wrapkit.optimizer("sgd8bit", language_model(), momentum=0.0)


def test_one_step_size_estimators_refuse_rates_of_their_own(language_model):
    pytest.importorskip("prodigyopt")
    rules = (*DEFAULT_RULES, Rule("norm", options={"lr": 0.1}))
    with pytest.raises(ValueError, match="estimates one step size for all parameters"):
        wrapkit.optimizer("prodigy", language_model(), rules=rules)


def test_names(language_model):
    assert type(wrapkit.optimizer("AdamW", language_model())) is torch.optim.AdamW
    with pytest.raises(ValueError, match=r"no optimizer 'prodigi' \(did you mean prodigy\?\); known: adamw, sgd"):
        wrapkit.optimizer("prodigi", language_model())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_package_x", "no_such_package_x is not installed"),
        ("broken_x", "raised OSError: no libcudart"),
        ("half_x", "it needs absent_y, which is not installed"),
    ],
)
def test_a_backend_that_cannot_be_loaded(tmp_path, monkeypatch, name, reason):
    from wrapkit.backends._probe import load

    (tmp_path / "broken_x.py").write_text("raise OSError('no libcudart')")
    (tmp_path / "half_x.py").write_text("import absent_y")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable, match=reason) as error:
        load(name, "x", "extra")
    assert error.value.reason
    assert error.value.hint
