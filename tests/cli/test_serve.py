"""`serve`: the commands of a run's servers, from the run's own settings."""

import itertools
import shlex

import pytest

from saerl_lightning import cli

SERVERS = ["--model.engine=ServerEngine", '--model.engine.urls=["http://127.0.0.1:8000","http://n3:8001"]']


def test_commands_have_the_runs_model_dtype_and_context(workplace, capsys):
    flags = [*SERVERS, "--model.engine.server.tensor_parallel=2", "--model.engine.server.device=cuda"]
    sets = f'--data.val={{"dev": {{"source": "{workplace.dev}", "sampling": {{"max_tokens": 30}}}}}}'
    cli.run([*workplace.command("serve"), *flags, sets, "--trainer.precision=bf16-mixed", "--print_commands=true"])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("#")] == ["# http://127.0.0.1:8000", "# http://n3:8001"]
    first, second = (shlex.split(line) for line in printed if "vllm.entrypoints" in line)
    assert (
        dict(itertools.pairwise(first)).items()
        >= {
            "--model": str(workplace.policy),
            "--dtype": "bfloat16",
            "--max-model-len": str(64 + 30),
            "--host": "127.0.0.1",
            "--port": "8000",
            "--tensor-parallel-size": "2",
        }.items()
    )
    assert second[second.index("--host") + 1] == "n3"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "model.engine is HFEngine, which has no servers; add -c configs/engine/server.yaml"),
        (SERVERS, "http://n3:8001 is not on this machine's loopback"),
        (["--model.engine=ServerEngine", "--model.engine.server.tensor_parallel=0"], "tensor_parallel"),
    ],
    ids=["no servers", "elsewhere", "range"],
)
def test_what_can_not_be_served_is_refused(workplace, door, flags, said):
    ended = door([*workplace.command("serve"), *flags])
    assert ended.code == 2 and said in ended.error
