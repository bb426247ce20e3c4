"""peft's adapters switched, scaled and merged at exact steps."""

from __future__ import annotations

import pytest
import torch
import trainloop
from trainloop import Engines, LocalEngine
from trainloop.hooks import Hooks, StepEnd
from trainloop.hooks.curve import ramp
from trainloop.hooks.layer_sched import LayerSchedule
from trainloop.hooks.lora_sched import LoRASchedule, On, PeftAdapters
from trainloop.tree import first_difference

peft = pytest.importorskip("peft")
PLAN = {
    0: "x",
    3: On({"x": 1.0, "y": ramp(0.0, 1.0, 6)}),
    6: "y",
    8: On({"y": 0.5}, merged=True),
    10: On({"x": 1.0, "y": 2.0}, train=False),
}


def build(noisy) -> LocalEngine:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["net.0"], init_lora_weights=False)
    model = peft.get_peft_model(noisy(), config, adapter_name="x")
    model.add_adapter("y", config)
    return LocalEngine("net", model, torch.optim.AdamW(model.parameters(), lr=0.01))


def hooks_of(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


def moved(before, module) -> set[str]:
    names = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    return {part for n in names for part in n.split(".") if part in ("x", "y", "3")}


def parts(engine: LocalEngine):
    layers = LayerSchedule(engine, {0: ["*lora_*", "*net.3"]})
    return layers, LoRASchedule(engine, PeftAdapters(engine.module), PLAN)


def weight(model) -> torch.Tensor:
    return model.base_model.model.net[0].base_layer.weight


def effective(model) -> torch.Tensor:
    """The map that the adapted layer computes, from its answers."""
    layer = model.base_model.model.net[0]
    with torch.no_grad():
        return (layer(torch.eye(4)) - layer(torch.zeros(1, 4))).T


def by_formula(model, strengths) -> torch.Tensor:
    layer = model.base_model.model.net[0]
    own = layer.base_layer.weight.clone()
    for name, strength in strengths.items():
        scale = layer.lora_alpha[name] / layer.r[name]
        own += strength * scale * (layer.lora_B[name].weight @ layer.lora_A[name].weight)
    return own.detach()


def test_what_is_on_trains_and_counts_at_exact_steps(make_trainer, noisy):
    engine = build(noisy)
    model, hooks, trained = engine.module, hooks_of(*parts(engine)), []
    state = [{n: p.detach().clone() for n, p in model.named_parameters()}]

    def note(_):
        trained.append(moved(state[-1], model))
        state.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def check(e):
        curve = ramp(0.0, 1.0, 6)
        expected = {"x": 1.0} if e.step < 3 else {"x": 1.0, "y": curve(e.step)} if e.step < 6 else {"y": 1.0}
        if e.step < 8:
            torch.testing.assert_close(effective(model), by_formula(model, expected))
        elif e.step < 10:
            torch.testing.assert_close(effective(model), weight(model).detach())  # merged into it
        else:
            torch.testing.assert_close(effective(model), by_formula(model, {"x": 1.0, "y": 2.0}))

    hooks.on(StepEnd, note)
    hooks.on(StepEnd, check, order=1000)
    before = weight(model).detach().clone()
    make_trainer(engines=Engines([engine]), hooks=hooks).run()
    assert trained == [{"x", "3"}] * 3 + [{"x", "y", "3"}] * 3 + [{"y", "3"}] * 2 + [{"3"}] * 4
    torch.testing.assert_close(weight(model).detach(), before)


@pytest.mark.parametrize("stop", range(1, 12))
def test_resumed_at_every_step(make_trainer, noisy, tmp_path, stop):
    def start(**kwargs):
        engine = build(noisy)
        make_trainer(engines=Engines([engine]), hooks=hooks_of(*parts(engine)), **kwargs).run()
        return engine.state_dict()

    golden = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    start(until=stop)
    assert first_difference(golden, start()) is None


def test_none_on_is_the_model_without_adapters(make_trainer, noisy):
    engine = build(noisy)
    schedule = LoRASchedule(engine, PeftAdapters(engine.module), {0: ()})
    schedule.apply(0)
    torch.testing.assert_close(effective(engine.module), weight(engine.module).detach())


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({0: "c"}, "net.lora at step 0: there is no adapter 'c'; there are x, y"),
        ({0: On({"x": ramp(0, 1, 9)}, merged=True)}, "x is merged, so its strength cannot move"),
        ({0: "x", 5: "y", 4: "x"}, "found 4 after 5"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(noisy, plan, words):
    engine = build(noisy)
    with pytest.raises(ValueError, match=words):
        LoRASchedule(engine, PeftAdapters(engine.module), plan)


def test_the_table_names_what_is_on(noisy):
    _, schedule = parts(build(noisy))
    lines = [line.split(" | ") for line in schedule.describe(until=11).splitlines()[2:]]
    assert [(int(step), on) for step, on in lines] == [
        (0, "x"),
        (3, "x, y x0.5"),
        (6, "y"),
        (8, "y x0.5 merged"),
        (10, "x, y x2"),
        (11, "x, y x2"),
    ]
