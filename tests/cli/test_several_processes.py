"""Runs of several processes that could not go well end at the door, before another process is started."""

DDP = ["--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


def test_a_batch_that_can_not_be_shared_is_refused_before_others_start(workplace, door, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # so that Lightning starts no other process where nothing is refused
    ended = door(workplace.command("fit", "--trainer.devices=3", *DDP))
    assert ended.code == 2
    assert "data.batch_size is 2, which 3 processes can't share evenly; write a multiple of 3" in ended.error
    assert not workplace.run_dir.exists()


def test_a_machine_that_waits_for_others_is_told_how_they_start(workplace, door, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    ended = door(workplace.command("fit", "--trainer.num_nodes=2", "--trainer.devices=1", *DDP))
    assert ended.code == 2 and "nothing says which machine is the first" in ended.error
    assert "torchrun --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint FIRST:29500" in ended.error
    assert not workplace.run_dir.exists()
