"""A diffusers model and noise schedule trained on waves instead of images, with a running average of the weights."""

import torch
import trainloop
from diffusers import DDPMScheduler, UNet1DModel
from torch.nn.functional import mse_loss
from trainloop.hooks.curve import hold, ramp
from trainloop.hooks.lr_sched import LRSchedule, cosine
from trainloop.hooks.model_sched import EMACopy

torch.manual_seed(0)


def unet() -> UNet1DModel:
    return UNet1DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        extra_in_channels=32,
        time_embedding_type="positional",
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )


net = unet()
engine = trainloop.LocalEngine("unet", net, torch.optim.AdamW(net.parameters(), lr=2e-3))
engines = trainloop.Engines([engine, trainloop.LocalEngine("ema", unet(), role="frozen")])
noise_schedule = DDPMScheduler(num_train_timesteps=100)


class Waves:
    """Endless batches of sines of any phase; B, 1, 16."""

    def __iter__(self):
        while True:
            yield torch.sin(torch.rand(32, 1, 1) * 6.28 + torch.arange(16) * 0.8)


def denoise(engine, waves, ctx):
    noise = torch.randn_like(waves)
    times = torch.randint(0, 100, (len(waves),))
    noisy = noise_schedule.add_noise(waves, noise, times)
    return trainloop.StepOutput(mse_loss(engine.module(noisy, times).sample, noise), weight=len(waves))


hooks = trainloop.Hooks()
hooks.attach(LRSchedule(engine, cosine(100, warmup=10)))
hooks.attach(EMACopy(engine, engines["ema"], decay=hold(0.0, 20).then(ramp(0.5, 0.95, 60))))
losses: list[float] = []
hooks.on(trainloop.hooks.MetricsReady, lambda e: losses.append(e.metrics["unet.loss"]))
trainloop.Trainer(engines, Waves(), denoise, until=100, hooks=hooks, commands=False, progress=False, seed=0).run()
with torch.no_grad():
    averaged = denoise(engines["ema"], next(iter(Waves())), None).loss.item()
print("the loss halved:", sum(losses[-10:]) < sum(losses[:10]) / 2)
print("the average has it too:", averaged < losses[0] / 2)
