"""One GRPO run over N processes, as a script: `python ranks.py POLICY OUT N`. Used by test_ranks.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.rollout.scripted import ScriptedEngine
from tests.training.conftest import data, fit, module, trainer

TEXTS = ["1", "22", "333", "4444", "0", "12", "9 9 9", "7"]


class ByPrompt(ScriptedEngine):
    """Completions that depend on the prompt alone, so that they are the same on whichever rank it is served."""

    def generate(self, prompt_ids, sampling):
        start = sum(prompt_ids[0]) % len(TEXTS)
        parts = []
        for ids in prompt_ids:
            start = sum(ids) % len(TEXTS)
            self.completions = TEXTS[start:] + TEXTS[:start]
            parts.append(super().generate([ids], sampling))
        return join(parts)


def join(parts):
    """Rollouts of several prompts as one."""
    from saerl_lightning.records import Rollouts

    width = max(part.tokens.shape[1] for part in parts)
    pad = lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1]))  # noqa: E731
    rows = {name: torch.cat([pad(getattr(p, name)) for p in parts]) for name in ("tokens", "mask", "logprobs")}
    flat = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("truncated", "weight_version")}
    texts = [text for part in parts for text in part.texts]
    return Rollouts(**rows, **flat, texts=texts, group_size=parts[0].group_size)


def main(policy: str, out: str, ranks: int) -> None:
    warnings.simplefilter("ignore")
    grpo = module(policy, engine=ByPrompt(TEXTS), micro_tokens=90)
    run = trainer(Path(out).parent, 3, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, data(), run)
    if run.is_global_zero:
        torch.save(grpo.model.state_dict(), out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
