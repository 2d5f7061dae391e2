"""Runs of several processes that could not go well end at the door, before another process is started."""

import pytest

DDP = ["--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


@pytest.mark.parametrize("verb", ["fit", "plan", "validate"])
def test_vllm_beside_several_processes_is_refused_also_by_plan(workplace, door, verb, monkeypatch):
    """Before, `plan` printed the memory of eight ranks for it, and each rank of `fit` told its own error."""
    monkeypatch.setenv("LOCAL_RANK", "0")  # so that Lightning starts no other process where nothing is refused
    place = [f"--out={workplace.folder / 'plan'}"] if verb == "plan" else []
    given = ["--model.engine=VLLMEngine", "--trainer.devices=8", *DDP, *place]
    ended = door(workplace.command(verb, *given))
    assert ended.code == 2 and "samples beside one training process, and there are 8" in ended.error
    assert "HFEngine" in ended.error
    assert not (workplace.folder / "plan").exists()


def test_a_machine_that_waits_for_others_is_told_how_they_start(workplace, door, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    ended = door(workplace.command("fit", "--trainer.num_nodes=2", "--trainer.devices=1", *DDP))
    assert ended.code == 2 and "nothing says which machine is the first" in ended.error
    assert "torchrun --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint FIRST:29500" in ended.error
    assert not workplace.run_dir.exists()
