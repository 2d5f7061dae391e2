"""Checkpoints: none of weights that are no numbers, one at every end, none that is damaged unnoticed, one upon a signal."""

import os
import signal
import subprocess
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.policy.weights import digests_file, require_readable
from saerl_lightning.training.callbacks import CleanEnd, Stopped, StopSignals
from saerl_lightning.training.checkpoints import RunCheckpoint, WholeCheckpoints


class Descent(lightning.LightningModule):
    """One weight, five batches an epoch; after a given step it is no number."""

    def __init__(self, breaks_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.breaks_at = breaks_at

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def on_train_batch_end(self, *_) -> None:
        """Called behind the callbacks: the next one to look is that of the next step."""
        if self.global_step + 1 == self.breaks_at:
            self.optimizers().state[self.weight]["exp_avg"].fill_(float("nan"))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(5, 1))

    def validation_step(self, batch, batch_idx): ...

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 1))


class Watch(Callback):
    """Notes at which steps last.ckpt is written."""

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.ckpt"
        self.seen: list[int] = []

    def on_train_batch_start(self, *_) -> None:
        if self.last.exists() and (step := steps_in(self.last)) not in self.seen:
            self.seen.append(step)

    on_validation_start = on_train_epoch_start = on_train_end = on_fit_end = on_train_batch_start


def steps_in(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def weights(tensor: torch.Tensor) -> dict:
    """The least that a run writes."""
    return {"state_dict": {"w": tensor}, "pytorch-lightning_version": lightning.__version__}


def saver(folder: Path, every: int = 50) -> RunCheckpoint:
    return RunCheckpoint(
        dirpath=folder, save_last=True, save_top_k=0, every_n_train_steps=every, save_on_train_epoch_end=True,
        enable_version_counter=False,
    )  # fmt: skip


def fit(module, folder: Path, *callbacks: Callback, ckpt_path=None, **arguments) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), plugins=[WholeCheckpoints()],
        **quiet | {"max_epochs": 2} | arguments,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint"),
]


def test_every_epoch_and_the_run_end_with_a_checkpoint_whatever_the_interval(tmp_path):
    watch = Watch(tmp_path)
    fit(Descent(), tmp_path, watch, saver(tmp_path), max_epochs=-1, max_steps=12)
    assert watch.seen == [5, 10, 12]


@pytest.mark.parametrize("every", [1, 50])
def test_weights_that_are_no_numbers_are_not_saved_and_the_last_good_ones_stay(tmp_path, every):
    with pytest.raises(RunStopped, match=r"after step 7 weight holds NaN .*last good checkpoint is .*last.ckpt"):
        fit(Descent(breaks_at=7), tmp_path, saver(tmp_path, every), max_epochs=-1, max_steps=7)
    assert steps_in(tmp_path / "last.ckpt") == (6 if every == 1 else 5)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["weight"].isfinite()


def test_a_state_of_the_optimiser_that_is_no_number_is_not_saved(tmp_path):
    class Broken(Descent):
        def on_before_zero_grad(self, optimizer) -> None:
            if self.global_step == 2:
                optimizer.state[self.weight]["exp_avg_sq"].fill_(float("inf"))  # the weight stays finite

    with pytest.raises(RunStopped, match=r"the optimiser's exp_avg_sq of weight holds NaN or infinity, .* no earlier"):
        fit(Broken(), tmp_path, saver(tmp_path), max_steps=3)
    assert not (tmp_path / "last.ckpt").exists()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(weights(torch.rand(5000)), path)
    require_readable(path)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"last.ckpt' is damaged: its bytes are not those"):
        require_readable(path)
    with pytest.raises(InputError, match="is damaged"):
        WholeCheckpoints().load_checkpoint(path)


def test_a_kill_between_digest_and_file_leaves_a_good_checkpoint(tmp_path, monkeypatch):
    """Twice in a row: the file that stands there is two writings old by then."""
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(weights(torch.zeros(9)), path)
    replace = Path.replace
    for value in (1.0, 2.0):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda self, target: killed() if target == path else replace(self, target))
            with pytest.raises(KeyboardInterrupt):
                WholeCheckpoints().save_checkpoint(weights(torch.full((9,), value)), path)
        require_readable(path)
    assert torch.equal(WholeCheckpoints().load_checkpoint(path)["state_dict"]["w"], torch.zeros(9))
    (tmp_path / ".last.ckpt.1.writing").write_text("what a killed process left")
    WholeCheckpoints().save_checkpoint(weights(torch.ones(9)), path)
    require_readable(path)
    assert {each.name for each in tmp_path.iterdir()} == {"last.ckpt", digests_file(path).name}


def killed() -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_keeps_the_last_checkpoint_and_room_for_the_next(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode()}")
    try:
        path, io = disk / "last.ckpt", WholeCheckpoints()
        io.save_checkpoint(weights(torch.zeros(20_000)), path)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                io.save_checkpoint(weights(torch.ones(40_000)), path)
            assert torch.equal(io.load_checkpoint(path)["state_dict"]["w"], torch.zeros(20_000))
        io.save_checkpoint(weights(torch.ones(20_000)), path)  # nothing half-written is in its way
        require_readable(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- signals -----------------------------------------------------------------------------------------------------------


class Signal(Callback):
    """Sends this process a signal in a step, or in a validation."""

    def __init__(self, number: int, step: int, validating: bool) -> None:
        self.number, self.step, self.validating = number, step, validating

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step - 1 and not self.validating:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, *_) -> None:
        """Once: a second signal would end the run at once."""
        if trainer.global_step == self.step and self.validating and batch_idx == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("validating", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_of_the_step_in_hand(tmp_path, number, code, validating):
    keep = saver(tmp_path)
    keep.signals = StopSignals()
    step = 5 if validating else 3
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, keep.signals.heeded():
        fit(Descent(), tmp_path, Signal(number, step, validating), keep)
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert steps_in(tmp_path / "last.ckpt") == step
    resumed = Descent()
    fit(resumed, tmp_path, saver(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    whole = Descent()
    fit(whole, tmp_path, saver(tmp_path / "whole"))
    assert resumed.weight.item() == whole.weight.item()


class Rows(Logger):
    """A logger of somebody else: the steps it is given."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.steps.append(step)

    def log_hyperparams(self, *_, **__) -> None: ...


class Logged(Descent):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_callbacks(self):
        return [CleanEnd()]


def test_every_logger_gets_the_row_of_the_step_in_hand_once(tmp_path):
    keep, rows = saver(tmp_path), Rows()
    keep.signals = StopSignals()
    with pytest.raises(Stopped), keep.signals.heeded():
        fit(Logged(), tmp_path, Signal(signal.SIGTERM, 3, False), keep, logger=rows, log_every_n_steps=1)
    assert rows.steps == [0, 1, 2]
    fit(Logged(), tmp_path, saver(tmp_path), ckpt_path=tmp_path / "last.ckpt", logger=rows, log_every_n_steps=1)
    assert rows.steps == list(range(10))


def test_a_second_signal_does_not_wait_and_none_waits_before_training():
    signals = StopSignals()
    with pytest.raises(Stopped), signals.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
    signals.training = True
    with signals.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
