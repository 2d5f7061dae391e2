"""JudgeReward against vLLM's own server, started and asked by the commands of the page."""

import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.reward.judge_reward import JudgeReward
from tests.reward.examples import SUM_PROMPTS, rollouts

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/smollm2-135m"
PAGE = (ROOT / "docs/howto/reward.md").read_text()
OVERLAY = re.search(r'```yaml title="judged.yaml"\n(.*?)```', PAGE, re.DOTALL)[1]
SERVE, SHOW = re.search(
    r"```bash\n(\.venv/bin/python -m vllm.*?)\n(\.venv/bin/python main.py show.*?)```", PAGE, re.DOTALL
).groups()
CHOICE = {"structured_outputs": {"choice": ["yes", "no"]}}

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"needs {MODEL}: `make smollm2`"),
]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The page's command on a free port, in a process group of its own."""
    number, log = free_port(), tmp_path_factory.mktemp("judge") / "log"
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(
            ["bash", "-c", "exec " + SERVE.replace("8000", str(number))],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        due = time.monotonic() + 500
        while "startup complete" not in log.read_text():
            assert server.poll() is None and time.monotonic() < due, log.read_text()[-3000:]
            time.sleep(1)
        yield number
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.timeout(900)
def test_vllm_judges_and_says_what_it_refuses(port, tmp_path):
    url = f"http://127.0.0.1:{port}/v1"
    settings = {"pattern": "(yes|no)", "verdicts": {"yes": 1.0, "no": 0.0}, "cache": str(tmp_path), "deadline_s": 120.0}
    judge = JudgeReward(url, "judge", "Say yes.\n{{ completion }}", options=CHOICE, **settings)
    judge.check()
    texts = rollouts(["yes yes yes", "It is a lemon."], ["yes", "no"], ["2 < 3 <|im_end|>", "é"])
    scores = judge(SUM_PROMPTS, texts)
    assert scores.isfinite().all() and set(scores.flatten().tolist()) <= {0.0, 1.0}, judge.last_failure
    assert judge(SUM_PROMPTS, texts).equal(scores) and judge.drain_counts()["asked"] == 6, "the rest came from disk"
    judge.close()
    for other, said in (({"model": "other"}, "answered 404"), ({"options": {"top_p": 7}}, "answered 400 Bad Request")):
        with pytest.raises(InputError, match=said):
            JudgeReward(**{"url": url, "model": "judge", "cache": None, **other}).check()
    long = JudgeReward(url, "judge", cache=None)
    assert long(SUM_PROMPTS[:1], rollouts(["word " * 3000])).isnan().all() and "answered 400" in long.last_failure


@pytest.mark.timeout(900)
def test_the_command_of_the_page_prints_the_judges_grade(port, tmp_path):
    for name in (".venv", "main.py", "configs", "saerl_lightning"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "models").symlink_to(MODEL.resolve().parent)
    (tmp_path / "judged.yaml").write_text(OVERLAY.replace("8000", str(port)))
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": "What is 1 + 2?", "answer": "3"}) + "\n")
    done = subprocess.run(["bash", "-c", SHOW], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^reward judge: [01]$", done.stdout, re.MULTILINE), done.stdout
