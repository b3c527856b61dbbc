"""A recorder in Lightning, Hugging Face's trainer, TensorBoard and W&B: their own readers find what was recorded."""

import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import deconvviz
from deconvviz.integrations.trackers import Tracked, numbers_of
from deconvviz.training import recorder as _recorder

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LAYER = "0"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def recorder(tmp_path, layer="1", **options):
    return deconvviz.Recorder(tmp_path / "record", IMAGES, layers=[layer], epochs=(1, 2), **options)


class Kept:
    def __init__(self):
        self.sent = []

    def send(self, *what):
        self.sent.append(what)


def test_numbers_are_those_of_the_layers(tmp_path):
    kept, model = Kept(), network()
    tracked = Tracked(recorder(tmp_path), kept, units=2)
    assert tracked(model, 1)
    with torch.no_grad():
        model[0].weight.neg_()
        model[0].weight[2], model[0].bias[2] = 0, -1
    assert tracked(model, 2) and not tracked(model, 3)
    assert [epoch for _, _, epoch in kept.sent] == [1, 2]
    with torch.no_grad():
        strongest, image = model[:2](IMAGES).amax((2, 3)).max(0)
    before = deconvviz.Recording.load(tmp_path / "record")["1"].image_ids[0]
    pictures, numbers, _ = kept.sent[1]
    assert numbers["deconvviz/1/activation"] == pytest.approx(float(strongest.double().mean()), rel=1e-5)
    assert numbers["deconvviz/1/silent"] == 0.25
    moved = [int(i) != int(j) for i, j in zip(image, before, strict=True)]
    moved[2] = True  # a silent unit has no image
    assert numbers["deconvviz/1/changed"] == sum(moved) / 4
    (pixels,) = pictures.values()
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and len(np.unique(pixels)) > 10
    with pytest.raises(deconvviz.OptionError, match="units=0"):
        Tracked(recorder(tmp_path), kept, units=0)


def events(folder):
    """Read what TensorBoard would show: {name: {step: value}}, and the pictures' names and steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    scalars = {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}
    return scalars, {name: [e.step for e in found.Images(name)] for name in found.Tags()["images"]}


@pytest.fixture
def quiet():
    """Other libraries' own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_tensorboard_reads_it(tmp_path, quiet):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from deconvviz.integrations.trackers import TensorBoard

    with tensorboard.SummaryWriter(str(tmp_path / "events")) as writer:
        tracked, model = Tracked(recorder(tmp_path), TensorBoard(writer)), network()
        for epoch in (1, 2):
            tracked(model, epoch)
    scalars, images = events(tmp_path / "events")
    expected = numbers_of(deconvviz.Recording.load(tmp_path / "record"), 2)
    assert images == {"deconvviz/1": [1, 2]}
    assert {name: values[2] for name, values in scalars.items()} == pytest.approx(expected, rel=1e-6)


def test_lightning_calls_it(tmp_path, quiet, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from lightning.pytorch.loggers import TensorBoardLogger

    from deconvviz.integrations.lightning import RecorderCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    monkeypatch.setattr(lightning.trainer.trainer.log, "info", lambda *_: None)
    module, data = Module(), DataLoader(TensorDataset(IMAGES, torch.tensor([0, 1] * 3)), 3)
    callback = RecorderCallback(recorder(tmp_path), network="model")
    how = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    logger = TensorBoardLogger(str(tmp_path / "logs"), version="run")
    trainer = lightning.Trainer(
        max_epochs=3, callbacks=[callback], logger=logger, enable_checkpointing=False, **how, default_root_dir=tmp_path
    )
    trainer.fit(module, data)
    same_as_by_hand(tmp_path, module.model, lambda recorded: trainer.fit_loop.epoch_progress.current.completed == 3)
    scalars, images = events(tmp_path / "logs" / "lightning_logs" / "run")
    assert images == {"deconvviz/1": [1, 2]} and set(scalars["deconvviz/1/activation"]) == {1, 2}


def same_as_by_hand(tmp_path, model, check):
    recording = deconvviz.Recording.load(tmp_path / "record")
    assert recording.epochs == (1, 2) and check(recording)
    assert model.training
    # The weights of the second epoch are kept with it: those of the third, the model's, are others.
    assert not torch.equal(recording.filters[1], recording.filters[0])
    assert not torch.equal(recording.filters[1], _recorder.first_filters(model, IMAGES))


def test_hugging_face_calls_it(tmp_path, quiet, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from deconvviz.integrations.transformers import RecorderCallback

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, pixels, labels=None):
            found = self.model(pixels)
            return {"loss": nn.functional.cross_entropy(found, labels), "logits": found}

    class Data(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, i):
            return {"pixels": IMAGES[i], "labels": i % 2}

    model, kept = Model(), Kept()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    callback = RecorderCallback(recorder(tmp_path), kept, network="model")
    transformers.Trainer(model=model, args=arguments, train_dataset=Data(), callbacks=[callback]).train()
    same_as_by_hand(tmp_path, model.model, lambda _: [epoch for *_, epoch in kept.sent] == [1, 2])


def test_weights_and_biases_takes_it_offline(tmp_path, quiet, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from deconvviz.integrations.trackers import WeightsAndBiases

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="deconvviz")
    try:
        Tracked(recorder(tmp_path), WeightsAndBiases(run))(network(), 1)
        recording = deconvviz.Recording.load(tmp_path / "record")
        for name, value in numbers_of(recording, 1).items():
            assert run.summary[name] == pytest.approx(value)
        assert run.summary["deconvviz/epoch"] == 1
    finally:
        run.finish()
    files = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert any(name.endswith(".png") for name in files) and any(name.endswith(".wandb") for name in files)
