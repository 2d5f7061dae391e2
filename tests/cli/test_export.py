"""What `export` writes is the trained policy, to the last logit, in a folder that transformers loads."""

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.weights import base_model

TOKENS = torch.arange(5, 45).view(2, 20)  # (2, 20)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(TOKENS).logits  # (2, 20, V)


def exported(door, checkpoint, folder, *flags: str) -> Policy:
    start = torch.load(checkpoint, weights_only=True)["policy"]["path"]
    ended = door(["export", str(checkpoint), str(folder), f"--policy={start}", *flags])
    assert ended.code == 0, ended.stderr
    return Policy(str(folder))


def test_the_folder_holds_the_trained_weights_and_the_tokenizer(trained, door, tmp_path):
    policy = exported(door, trained.workplace.last, tmp_path / "nested" / "hf")
    start = logits(Policy(str(trained.workplace.policy)).load_model())
    now = logits(policy.load_model())
    assert torch.equal(now, logits(trained.cli.model.model))
    assert (now - start).abs().max() > 1e-3  # it did learn something
    chat = [{"role": "user", "content": "what is 3 + 4?"}]
    ids = [p.load_tokenizer().apply_chat_template(chat)["input_ids"] for p in (policy, trained.cli.model.policy)]
    assert ids[0] == ids[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nested"]  # and nothing beside it
    assert [path.name for path in (tmp_path / "nested").iterdir()] == ["hf"]


def test_adapters_are_merged_into_the_weights(workplace, door):
    made = cli.run(workplace.command("fit", '--model.policy.lora={"rank": 4, "dropout": 0.0}'))
    policy = exported(door, workplace.last, workplace.folder / "hf")
    adapted = logits(made.model.model)
    with made.model.model.disable_adapter():
        bare = logits(made.model.model)
    merged = policy.load_model()
    assert type(merged) is type(base_model(made.model.model))  # no wrapper is left
    assert (adapted - bare).abs().max() > 1e-3
    assert (logits(merged) - adapted).abs().max() < 1e-5


def test_a_folder_that_exists_is_replaced_only_when_asked_to(trained, door, tmp_path):
    folder = tmp_path / "hf"
    exported(door, trained.workplace.last, folder)
    (folder / "notes.txt").write_text("precious")
    refused = door(["export", str(trained.workplace.last), str(folder)])
    assert refused.code == 2 and "exists; write --overwrite true" in refused.error
    assert (folder / "notes.txt").exists()
    exported(door, trained.workplace.last, folder, "--overwrite=true")
    assert not (folder / "notes.txt").exists()


def test_what_is_no_hf_folder_is_never_deleted(trained, door, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    ended = door(["export", str(trained.workplace.last), str(tmp_path), "--overwrite=true"])
    assert ended.code == 2 and "is no HF folder and is not replaced" in ended.error
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_export_is_not_mistaken_for_a_whole_one(trained, door, tmp_path, monkeypatch):
    folder = tmp_path / "hf"

    def power_cut(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Policy, "load_tokenizer", power_cut)  # the weights are written by then
        exported(door, trained.workplace.last, folder)
    assert not folder.exists()
    exported(door, trained.workplace.last, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]  # the remains are gone
    assert torch.equal(logits(Policy(str(folder)).load_model()), logits(trained.cli.model.model))


def test_a_checkpoint_that_holds_no_policy_is_refused(door, tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "sae.ckpt")
    ended = door(["export", str(tmp_path / "sae.ckpt"), str(tmp_path / "hf")])
    assert ended.code == 2 and "holds no policy" in ended.error
    assert not (tmp_path / "hf").exists()
