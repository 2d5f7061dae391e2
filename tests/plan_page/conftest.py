"""A small plan that has everything a report can show, with texts that try to break out of the page."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.planned import MadePlan, OperationReport
from saerl_lightning.records import Prompt

HOSTILE = '</script><script>document.title="broken"</script><img src="http://elsewhere.invalid/x" onerror="alert(1)">'
SUBJECTS = ["triangle angle side", "polynomial roots degree", "dice probability cards"]


def make_prompts(count: int) -> list[Prompt]:
    """Every third prompt is about the same subject; topics name it, all but for the last subject's."""
    prompts = []
    for i in range(count):
        words = SUBJECTS[i % 3]
        text = f"Number {i}: {words} $\\frac{{{i}}}{{2}} < 3$ & {HOSTILE if i == 4 else ''}"
        topic = ["geometry <b>", "algebra", None][i % 3]
        prompts.append(Prompt.asking(f"p{i}", text, "1", topic=topic))
    return prompts


def make_run(count: int = 60, batch_size: int = 4) -> MadePlan:
    """Clusters are the subjects, difficulty is the position, quality drops two prompts, mixing moved two."""
    prompts = make_prompts(count)
    position = np.arange(count)
    mixed_from = np.full(count, -1)
    mixed_from[[6, 7]] = [2, 0]
    dropped = {0: "rated below the 0.05-quantile of quality", 1: "rated below the 0.05-quantile of quality"}
    plan = SamplePlan(
        position[2:], batch_size, position % 3, position.astype(float), position / count, mixed_from, dropped
    )
    rows = np.zeros((count, 8))
    rows[position, position % 3] = 1 + position / count
    rows[position, 3 + position % 5] = 0.2
    metrics = {"kept": count - 2, "dropped": 2, "threshold": 1.5 / count}
    probe = {"probe/spearman": 0.43, "probe/spearman_low": 0.4, "probe/spearman_high": 0.46}
    operations = [
        OperationReport("filtering", "QualityFilter", {**metrics, "own/number": 7.0}, dropped[0]),
        OperationReport("clustering", "KMeansClusters", {"clusters": 3.0}),
        OperationReport("curriculum", "EasyToHard", probe),
    ]
    return MadePlan(prompts, plan, "0123456789abcdef", operations, "SAESignals", csr_array(rows))


@pytest.fixture
def planned() -> MadePlan:
    return make_run()
