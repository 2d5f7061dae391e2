"""The table of metric names in docs/metrics.md: TRL's are in its source, ours are defined on the page."""

import importlib.util
import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
DEFINED, _, TABLE = PAGE.partition("## Names in TRL and verl")
ROWS = [[cell.strip().strip("`") for cell in row.split("|")[1:5]] for row in TABLE.splitlines() if row.startswith("| ")]
OF_TRANSFORMERS = {"grad_norm", "learning_rate"}  # its Trainer logs them


def test_trl_logs_the_names_of_its_column():
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "trainer/grpo_trainer.py").read_text()
    logged = set(re.findall(r'_metrics\[(?:mode|"train")\]\[f?"([^"]+)"\]', source))
    named = {theirs.replace("<function>", "{reward_func_name}") for theirs, *_ in ROWS[2:] if theirs}
    assert len(named) > 20 and named - logged == OF_TRANSFORMERS


def test_our_names_are_those_that_the_page_defines():
    ours = {
        each.replace("<set>", "<stage>/<set>", 1).replace("val/<stage>", "<stage>") for *_, each, _ in ROWS[2:] if each
    }
    assert len(ours) > 20 and not {name for name in ours if f"| `{name}` |" not in DEFINED}
