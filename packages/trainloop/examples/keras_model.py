"""A Keras 3 model on its torch backend, trained as an engine, with Keras's own callbacks."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
import trainloop
from trainloop.hooks.keras import KerasCallbacks

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.layers.Input((4,)), keras.layers.Dense(16, "relu", name="hidden"), keras.layers.Dense(1, name="out")],
    name="net",
)
engine = trainloop.LocalEngine("net", model, torch.optim.AdamW(model.parameters(), lr=0.1))
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
batches = [(part, part.sum(1, keepdim=True)) for part in x.split(16)]


def regress(engine, batch, ctx):
    loss = (engine.module(batch[0]) - batch[1]).square().mean()
    return trainloop.StepOutput(loss, weight=len(batch[0]))


class Count(keras.callbacks.Callback):
    """A callback of one's own."""

    epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


count = Count()
callbacks = [
    count,
    keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=3, factor=0.5),
    keras.callbacks.EarlyStopping(monitor="loss", patience=8),
]
hooks = trainloop.Hooks()
hooks.attach(KerasCallbacks(engine, callbacks))
trainer = trainloop.Trainer(
    trainloop.Engines([engine]), batches, regress, until=4000, hooks=hooks, commands=False, progress=False
)
result = trainer.run()
print("stopped early:", result.reason == "quit" and result.step == 4 * count.epochs)
print("the rate was lowered:", engine.lr < 0.1)
print("it learned:", (model(x) - x.sum(1, keepdim=True)).square().mean().item() < 0.1)
