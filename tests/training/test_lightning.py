"""Lightning drives an H5Loader: epochs, and going on in the middle of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter import H5Loader
from helpers.arrays import equal_samples, make_h5

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.slow


class Seeing(lightning.LightningModule):
    """Note the positions of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch, number):
        self.seen.append(batch["position"].tolist())
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen(path: Path, folder: Path, *, epochs: int, resumed: str | None = None) -> list[list[int]]:
    """Train, and keep a checkpoint after each third batch."""
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, every_n_train_steps=3, save_top_k=-1, filename="{step}"
    )
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[checkpoints],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = H5Loader(path, batch_size=5, as_torch=True, positions=True, threads=1)
    model = Seeing()
    trainer.fit(model, loader, ckpt_path=resumed and folder / resumed)
    return model.seen


def test_training_goes_on_at_the_batch_behind_the_checkpoint(tmp_path):
    path = make_h5(tmp_path, equal_samples(20))
    expected = [
        batch["position"].tolist()
        for loader in [H5Loader(path, batch_size=5, positions=True, threads=0)]
        for _ in range(3)
        for batch in loader
    ]
    assert seen(path, tmp_path / "whole", epochs=3) == expected
    assert seen(path, tmp_path / "begun", epochs=2) == expected[:8]
    assert seen(path, tmp_path / "begun", epochs=3, resumed="step=6.ckpt") == expected[6:]
