"""A Lightning run in which a recorder keeps what units see after each epoch."""

import lightning.pytorch as pl
import torch

import deconvviz
from deconvviz.integrations.lightning import RecorderCallback


class Module(pl.LightningModule):
    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


module, images = Module(), torch.randn(8, 3, 32, 32)
module.model = deconvviz.zoo.create("resnet-8").train()
recorder = deconvviz.Recorder("record.safetensors", images, layers=[1], epochs=(1, 2))
trainer = pl.Trainer(max_epochs=2, callbacks=[RecorderCallback(recorder, network="model")], accelerator="cpu")
trainer.fit(module, torch.utils.data.DataLoader(list(zip(images, [0, 1] * 4)), batch_size=4))  # noqa: B905
