"""Loaders in other people's training loops: plain PyTorch with torchdata's protocol, and Lightning."""

import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import liver_dask as ld
from helpers.archive import SHAPE

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("torch_em", reason="the extra `train` is not installed")

DEPTH, HEIGHT, WIDTH = SHAPE


@pytest.fixture(scope="module")
def asked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "path": tmp_path_factory.mktemp("stores"),
        "patch_shape": (3, 24, 32),
        "batch_size": 2,
        "bounding_boxes": [(0, WIDTH, 0, HEIGHT, 0, DEPTH)],
        "source": archive,
        "shape": SHAPE,
        "download": True,
        "n_samples": 12,
        "num_workers": 2,
        "seed": 0,
    }


def loader(asked: dict[str, Any]) -> Any:
    return ld.get_human_liver_em_loader(**asked)


def test_a_plain_loop_goes_on_from_a_checkpoint(asked, tmp_path: Path) -> None:
    """A loop of plain PyTorch that is interrupted goes on with the same patches and ends with the same weights."""

    def new() -> tuple[Any, Any]:
        torch.manual_seed(0)
        net = torch.nn.Conv3d(1, 1, 3, padding=1)
        return net, torch.optim.SGD(net.parameters(), 0.1)

    def train(net: Any, optimizer: Any, batches: Any, steps: int) -> None:
        for _, (raw, labels) in zip(range(steps), batches, strict=False):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(net(raw), labels).backward()
            optimizer.step()

    net, optimizer = new()
    train(net, optimizer, loader(asked), 6)
    expected = net.state_dict()

    net, optimizer = new()
    ours = loader(asked)
    train(net, optimizer, ours, 4)
    torch.save([part.state_dict() for part in (net, optimizer, ours)], tmp_path / "c.pt")

    net, optimizer = new()
    ours = loader(asked)
    for part, state in zip((net, optimizer, ours), torch.load(tmp_path / "c.pt"), strict=True):
        part.load_state_dict(state)
    train(net, optimizer, ours, 6)
    for name, weights in net.state_dict().items():
        assert torch.equal(weights, expected[name])


def test_a_sampler_of_lightning_is_refused_in_one_sentence(asked) -> None:
    """Lightning makes loaders anew, with a sampler of its own, unless it is told not to; the error says how."""
    ours = loader(asked)
    given = {name: getattr(ours, name) for name in ("dataset", "batch_size", "count", "ranks", "has_seed", "workers")}
    with pytest.raises(ld.InvalidArgumentError, match="use_distributed_sampler=False"):
        type(ours)(**given, sampler=torch.utils.data.SequentialSampler(ours.dataset))


def test_lightning_goes_on_within_an_epoch(asked, tmp_path: Path) -> None:
    """Lightning keeps the state of the loader in its checkpoints: an interrupted epoch goes on with the next batch."""
    lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Conv3d(1, 1, 3, padding=1)
            self.seen: list[bytes] = []

        def training_step(self, batch: Any, _: int) -> Any:
            raw, labels = batch
            self.seen.append(raw.numpy().tobytes())
            return torch.nn.functional.binary_cross_entropy_with_logits(self.net(raw), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "c.ckpt")
                raise KeyError("as if the machine stopped")

    def fit(callbacks: list[Any], **options: Any) -> list[bytes]:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=callbacks, enable_checkpointing=False, **quiet
        )
        net = Net()
        with suppress(KeyError):
            trainer.fit(net, loader(asked), **options)
        return net.seen

    whole = fit([])
    assert len(set(whole)) == 18
    assert fit([Stop()]) == whole[:8]
    assert fit([], ckpt_path=tmp_path / "c.ckpt") == whole[8:]


RANKS = """
import pickle, sys
import pytorch_lightning as lightning
import torch
import liver_dask as ld

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Conv3d(1, 1, 3, padding=1), []

    def train_dataloader(self):  # called when the ranks are known
        return ld.get_human_liver_em_loader(**eval(sys.argv[1]))

    def training_step(self, batch, _):
        raw, labels = batch
        self.seen.append(raw.numpy().tobytes())
        return torch.nn.functional.binary_cross_entropy_with_logits(self.net(raw), labels)

    def on_train_end(self):
        pickle.dump(self.seen, open(f"{sys.argv[2]}/{self.global_rank}", "wb"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False,
    logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
).fit(Net())
"""


@pytest.mark.slow
def test_two_ranks_of_lightning_have_other_patches(asked, tmp_path: Path) -> None:
    """Two processes that Lightning starts have different patches, half of an epoch each."""
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    loader(asked)  # downloads
    given = {**asked, "path": str(asked["path"]), "source": str(asked["source"])}
    subprocess.run([sys.executable, "-W", "ignore", "-c", RANKS, repr(given), str(tmp_path)], check=True, timeout=300)
    first, second = (pickle.loads((tmp_path / str(rank)).read_bytes()) for rank in range(2))
    assert len(set(first)) == len(set(second)) == 3
    assert not set(first) & set(second)
