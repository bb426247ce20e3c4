"""A model on several devices: what goes where, what does not fit, and all of it back."""

import copy
import pickle

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import Offload, Optim, OverBudget, PatternError, Policy
from wrapkit._around import around_of
from wrapkit._offload import Elsewhere


class Model(nn.Module):
    """Tied head, a bare parameter, a buffer, blocks that mix devices in their code."""

    def __init__(self, width=16):
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4))
        self.sep = nn.Parameter(torch.ones(width))
        self.register_buffer("offset", torch.zeros(width))
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids) + self.sep
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x + self.offset)


LAYER = (16 * 16 + 16) * 4
IDS = torch.arange(10).view(2, 5)


def build():
    torch.manual_seed(0)
    return Model()


def where(model):
    return {n: str(t.device) for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}


def test_the_first_device_fills_up_then_the_next():
    places = Offload(["cpu", "meta"], {"cpu": 20 * 16 * 4 + 2 * 64 + 2 * LAYER}, training=False).place(build())
    assert places == {
        "": "cpu",
        "embedding": "cpu",
        "layers.0.0": "cpu",
        "layers.1.0": "cpu",
        "layers.2.0": "meta",
        "layers.3.0": "meta",
        "head": "cpu",
    }


def test_a_device_that_is_exactly_full_keeps_what_it_has():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    places = Offload(["cpu", "meta"], {"cpu": 2 * 80, "meta": 2 * 80}, training=False).place(model)
    assert list(places.values()) == ["cpu", "cpu", "meta", "meta"]


def test_gradients_and_optimizer_state_count():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    whole = 80 * 2 + 2 * 80 + 2 * 4  # weights, gradients, two moments, two steps
    spec = Offload(["cpu", "meta"], {"cpu": 2 * whole}, optimizer=Optim("adamw"))
    assert list(spec.place(model).values()) == ["cpu", "cpu", "meta", "meta"]
    spec = Offload(["cpu", "meta"], {"cpu": 2 * whole - 1}, optimizer=Optim("adamw"))
    assert list(spec.place(model).values()) == ["cpu", "meta", "meta", "meta"]
    model[3].requires_grad_(False)
    assert list(spec.place(model).values()) == ["cpu", "meta", "meta", "cpu"]


def test_moved_tied_and_undone():
    model = build()
    before, modules, values = where(model), list(model.modules()), copy.deepcopy(model.state_dict())
    objects, out = dict(model.named_parameters()), model(IDS)
    handle = Offload(["cpu", "meta"], assign={"layers.2": "meta", "head": "meta"}).apply(model)
    found = where(model)
    moved = {n for n, d in found.items() if d == "meta"}
    assert moved == {"layers.2.0.weight", "layers.2.0.bias", "head.weight", "embedding.weight"}
    assert model.head.weight is model.embedding.weight
    assert len(found) == len(before)  # nothing is lost
    handle.undo()
    assert where(model) == before
    assert list(model.modules()) == modules
    assert all(p is objects[n] for n, p in model.named_parameters())
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(IDS), out)


def test_policy_and_assign():
    model = build()
    spec = Offload(["cpu", "meta"], {"cpu": 20 * 16 * 4 + 128}, policy=Policy(["layers"]), training=False)
    assert [d for n, d in spec.place(model).items() if not n.startswith("layers")] == ["cpu"] * 3
    assert spec.policy == Policy(["layers"])  # not changed by planning
    spec = Offload(["cpu", "meta"], {"meta": LAYER}, assign={"layers.3": "meta"}, training=False)
    assert [n for n, d in spec.place(model).items() if d == "meta"] == ["layers.3.0"]


def test_over_budget_lists_all_that_is_left():
    model = build()
    spec = Offload(["cpu", "meta"], {"cpu": "2KiB", "meta": "1.5KiB"}, training=False)
    with pytest.raises(OverBudget, match=r"no room for layers\.1\.0 \(1\.1 KiB\); layers\.2\.0") as error:
        spec.apply(model)
    assert error.value.names == ["layers.1.0", "layers.2.0", "layers.3.0"]
    assert "cpu 1.4 KiB of 2.0 KiB, meta 1.1 KiB of 1.5 KiB" in str(error.value)
    assert set(where(model).values()) == {"cpu"}


class Doubling(Elsewhere):
    """Stands for a second device on a machine without one: notes what crosses."""

    def __init__(self, device):
        super().__init__(device)
        self.crossed = 0

    def __call__(self, forward, *args, **kwargs):
        self.crossed += 1
        return super().__call__(forward, *args, **kwargs)


def test_the_forward_enters_each_placed_module_once(monkeypatch):
    monkeypatch.setattr("wrapkit._offload.Elsewhere", Doubling)
    model, expected = build(), build()(IDS)
    with Offload(["cpu", "meta"], assign={"layers.3": "meta"}).apply(model):
        entered = {n for n, m in model.named_modules() if around_of(m)}
        assert entered == {"", "embedding", "layers.0", "layers.1", "layers.2", "layers.3", "head"}
    with Offload(["cpu"]).apply(model):
        assert torch.equal(model(IDS), expected)
        assert [n for n, m in model.named_modules() if around_of(m)] == [""]
        assert around_of(model)[0].crossed == 1
    assert type(model) is Model


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run_their_own_weights(through):
    model = build()
    with Offload(["cpu"]).apply(model):
        twin, out = through(model), model(IDS)
        assert torch.equal(twin(IDS), out)
        nn.init.zeros_(twin.embedding.weight)
        assert torch.count_nonzero(twin(IDS)) == 0
        assert torch.equal(model(IDS), out)


def test_an_optimizer_keeps_its_parameters(train, language_model):
    model = language_model()
    optimizer = wrapkit.optimizer("adamw", model, lr=1e-2)
    with Offload(["cpu"], optimizer=Optim("adamw")).apply(model):
        losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": []}, ValueError, r"devices is a list of at least one device, got \[\]"),
        ({"devices": "cpu"}, ValueError, "devices is a list"),
        ({"devices": ["cpu"], "limits": {"meta": 1}}, ValueError, "limits names 'meta', which is not among"),
        ({"devices": ["cpu"], "assign": {"head": "meta"}}, ValueError, "assign names 'meta'"),
        ({"devices": ["cpu"], "limits": {"cpu": "lots"}}, ValueError, "a limit is a number of bytes or a string"),
        ({"devices": ["cpu"], "assign": {"haed": "cpu"}}, PatternError, "'haed' matches nothing in the model"),
        ({"devices": ["cpu"], "policy": Policy(["x"])}, PatternError, "'x' matches nothing"),
        ({"devices": ["cuda:99"]}, ValueError, "there is no device cuda:99 here"),
        (
            {"devices": ["cpu", "meta"], "assign": {"head": "meta", "embedding": "cpu"}},
            ValueError,
            "embedding, head share a tensor and are assigned to cpu and meta",
        ),
    ],
)
def test_mistakes_move_nothing(options, error, message):
    model = build()
    with pytest.raises(error, match=message):
        Offload(**options).apply(model)
    assert set(where(model).values()) == {"cpu"}


def test_in_a_plan_with_the_bytes_of_each_device():
    model = build()
    spec = Offload(["cpu", "meta"], assign={"layers.2": "meta", "layers.3": "meta"})
    plan = wrapkit.plan(model, spec, optimizer=Optim("adamw"))
    assert plan.memory["meta"].parameters == 2 * LAYER
    assert plan.memory["meta"].optimizer == 2 * (2 * LAYER + 8)
    assert "Offload: 5 modules to cpu, 2 modules to meta" in plan.report()
    assert plan.report().splitlines()[-1].startswith("all ")
    handle = plan.apply()
    assert where(model)["layers.3.0.weight"] == "meta"
    handle.undo()


@pytest.mark.gpu
def test_on_a_gpu_and_the_cpu():
    model, x = build(), IDS
    expected = model(x)
    expected.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    values = copy.deepcopy(model.state_dict())
    objects = list(model.parameters())
    handle = Offload(["cuda:0", "cpu"], {"cuda:0": 20 * 16 * 4 + 128 + 2 * LAYER}, training=False).apply(model)
    assert {d for n, d in where(model).items() if n.startswith(("layers.2", "layers.3"))} == {"cpu"}
    assert where(model)["sep"] == where(model)["head.weight"] == "cuda:0"
    out = model(x)
    assert out.device.type == "cpu"  # where the input came from
    assert torch.allclose(out, expected, atol=1e-5)
    out.square().mean().backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad.device == p.device
        assert torch.allclose(p.grad.cpu(), gradient, atol=1e-5)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.embedding.weight)
    assert torch.count_nonzero(twin(x)) == 0
    optimizer = wrapkit.optimizer("adamw", model)
    optimizer.step()
    handle.undo()
    assert set(where(model).values()) == {"cpu"}
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    model.load_state_dict(values)
    assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.gpu
def test_undo_is_exact_on_a_gpu():
    model = build()
    values = copy.deepcopy(model.state_dict())
    with Offload(["cuda:0"]).apply(model):
        assert set(where(model).values()) == {"cuda:0"}
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
