"""`saerl init DIR`: writes a first run of one's own, small enough for a CPU."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from saerl_lightning.assets.tiny import write_tiny_policy
from saerl_lightning.errors import InputError, program
from saerl_lightning.files import whole_folder

STARTER = Path(__file__).parents[1] / "assets" / "starter"
# In the templates, where the folder that is written is named; in YAML between single quotes.
FOLDER = "$FOLDER"


def init(folder: str) -> None:
    """Writes a commented config, a reward function, ten prompts, a tiny random policy and a README.

    Args:
        folder: New folder; one that is there must be empty.

    Raises:
        InputError: if the folder holds something, is a file, or is the one the command is given in.
    """
    if not folder.strip() or not folder.isprintable() or folder.startswith(("-", "~")):
        raise InputError(
            f"the folder is {folder[:120]!r}; write a name of letters that can be seen, as in {program()} init try"
        )
    place = Path(folder).resolve()
    if ": " in str(place):  # data.train would read it as a mapping: a mixture of prompts
        raise InputError(
            f"the folder is {str(place)[:120]!r}, which holds ': '; name one without, as in {program()} init try"
        )
    if place in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"'{folder}' is the folder you are in, or above it; name a new one, as in {program()} init try"
        )
    with whole_folder(place) as staged:
        for template in sorted(STARTER.iterdir()):
            if template.is_file():
                text = template.read_text(encoding="utf-8").replace(FOLDER, str(place).replace("'", "''"))
                (staged / template.name).write_text(text, encoding="utf-8")
        (staged / "policy").mkdir()
        write_tiny_policy(staged / "policy", _texts(staged / "prompts.jsonl"))
    print(
        f"wrote {folder}: run.yaml, reward.py, prompts.jsonl, README.md and a tiny policy; now\n"
        f"  {program()} fit -c {shlex.quote(str(Path(folder, 'run.yaml')))}"
    )


def _texts(prompts: Path) -> list[str]:
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    return [f"{row['prompt']} {row['answer']}" for row in rows]
