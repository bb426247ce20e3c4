"""A LoRA routine on a small transformers model: an adapter is trained, later the head beside it, and merged last."""

import peft
import torch
import trainloop
from trainloop.hooks.layer_sched import LayerSchedule
from trainloop.hooks.lora_sched import LoRASchedule, On, PeftAdapters
from trainloop.hooks.lr_sched import LRSchedule, wsd
from trainloop.hooks.schedule import describe
from trainloop.hooks.train_sched import Phase, TrainSchedule
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
model = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
engine = trainloop.LocalEngine("llama", model, torch.optim.AdamW(model.parameters(), lr=2e-2))


def counting(length: int) -> list[torch.Tensor]:
    """Batches of sentences that count up, wrapping around; 8, length."""
    starts = torch.randint(0, 16, (32, 8, 1), generator=torch.Generator().manual_seed(1))
    return list((starts + torch.arange(length)) % 16)


def language(engine, tokens, ctx):
    loss = engine.module(input_ids=tokens, labels=tokens).loss
    return trainloop.StepOutput(loss, weight=tokens[:, 1:].numel())


phases = TrainSchedule({0: Phase("short", language, counting(6)), 60: Phase("long", language, counting(12))})
schedules = [
    phases,
    LRSchedule(engine, wsd(10, 80, 30)),
    LayerSchedule(engine, {0: ["*lora_*"], 40: ["*lora_*", "*lm_head"]}),
    LoRASchedule(engine, PeftAdapters(model), {0: "default", 120: On({"default": 1.0}, merged=True)}),
]
hooks = trainloop.Hooks()
for schedule in schedules:
    hooks.attach(schedule)
print(describe(*schedules, until=120))

losses: list[float] = []
hooks.on(trainloop.hooks.MetricsReady, lambda e: losses.append(e.metrics["llama.loss"]))
trainer = trainloop.Trainer(
    trainloop.Engines([engine]), phases.loader, phases, until=120, hooks=hooks, commands=False, progress=False
)
trainer.run()
print("it learned to count:", losses[0] > 2.5 and losses[-1] < 0.8 * losses[39] < 0.8 * losses[0])
print("merged:", all(layer.merged for layer in model.modules() if hasattr(layer, "lora_A")))
