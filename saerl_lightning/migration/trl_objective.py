"""Converts TRL's loss to an objective: its class, clip, advantages, KL, entropy and correction."""

from __future__ import annotations

from saerl_lightning.errors import InputError
from saerl_lightning.migration.arguments import Given
from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.migration.shared import entropy, kl

LOSSES = {"grpo": "GRPO", "dr_grpo": "DrGRPO", "dapo": "DAPO", "bnpo": "BNPO", "cispo": "CISPO"}
ELSEWHERE = ("sapo", "luspo", "vespo")  # losses that TRL has and we do not


def objective(given: Given, draft: Draft) -> None:
    """Converts the loss, with clip, KL, entropy and correction, to an objective."""
    loss = given.one_of("loss_type", [*LOSSES, *ELSEWHERE])
    level = given.one_of("importance_sampling_level", ["token", "sequence"])
    if loss in ELSEWHERE:
        draft.lose("loss_type", f"not here, because no objective is '{loss}'; the baseline's GRPO stays: choose one")
        return
    name = LOSSES[loss]
    if level == "sequence":
        name = "GSPO"
        if loss != "grpo":
            draft.lose(
                "loss_type",
                f"not here with importance_sampling_level: sequence, because GSPO averages as grpo, not {loss}",
            )
    arguments: dict[str, object] = {}
    low = given.number("epsilon")
    high = given.number("epsilon_high") if given["epsilon_high"] is not None else low
    if name == "CISPO":
        if high < 1:
            draft.lose(
                "epsilon_high",
                f"not here with cispo, because it is the largest weight there, and {high:g} is below 1; 5.0 stands",
            )
            high = 5.0
        arguments |= {"ratio_cap": high, "ratio_floor": 0.0}
    else:
        arguments |= {"clip_low": low, "clip_high": high, "dual_clip": _dual_clip(given, draft, 1 + high)}
    _scaled(given, draft, name, arguments)
    if name == "DAPO":
        arguments["mask_truncated"] = given["mask_truncated_completions"]
    elif given["mask_truncated_completions"]:
        draft.lose("mask_truncated_completions", f"not here, because only DAPO leaves cut completions out, not {name}")
    arguments["kl"] = kl(given.number("beta"), "k3", "loss")
    if arguments["kl"] and given["use_bias_correction_kl"]:
        draft.lose(
            "use_bias_correction_kl",
            "not here, because the KL of a token is not multiplied by its ratio; equal on one update a batch",
        )
    arguments["entropy"] = _entropy(given, draft, name)
    arguments["correction"] = _correction(given, draft)
    draft.put("model.objective", made(name, **arguments), "loss_type", "epsilon", "beta", "scale_rewards")


def _dual_clip(given: Given, draft: Draft, least: float) -> float | None:
    if given["delta"] is None:
        return None
    if given.number("delta") > least:
        return given.number("delta")
    draft.lose("delta", f"not here, because a bound inside the clip range ends at {least:g} is refused; write more")
    return None


def _scaled(given: Given, draft: Draft, name: str, arguments: dict[str, object]) -> None:
    """Sets whether advantages are divided by the group's deviation, or says that the objective decides it."""
    asked = given["scale_rewards"]
    scale = {"True": "group", "False": "none"}.get(str(asked).capitalize(), str(asked).lower())
    if scale not in ("group", "batch", "none"):
        raise InputError(f"scale_rewards is {str(asked)[:120]!r}; write group, batch or none")
    if scale == "batch":
        draft.lose(
            "scale_rewards", "not here, because only ReinforcePP (baseline: group) divides by the batch's deviation"
        )
    elif name == "GRPO":
        arguments["scale_by_std"] = scale == "group"
    elif name == "DrGRPO" and scale == "group":
        draft.lose(
            "scale_rewards",
            "not here, because DrGRPO never divides by the group's deviation, which TRL's dr_grpo does unless it is none",
        )
    elif name != "DrGRPO" and scale == "none":
        draft.lose(
            "scale_rewards",
            f"not here, because {name} divides by the group's deviation; GRPO (scale_by_std: false) and DrGRPO do not",
        )
    if name == "BNPO":
        arguments["beta_normalised"] = False


def _entropy(given: Given, draft: Draft, name: str) -> dict[str, object] | None:
    share = given.number("top_entropy_quantile")
    if share != 1 and (share <= 0 or name == "GSPO"):
        draft.lose(
            "top_entropy_quantile", "not here, because GSPO weighs whole completions, and a share of 0 has no tokens"
        )
        share = 1.0
    return entropy(given.number("entropy_coef"), share)


def _correction(given: Given, draft: Draft) -> dict[str, object] | None:
    mode = str(given["vllm_importance_sampling_mode"])
    known = {f"{level}_{kind}": (level, kind) for level in ("token", "sequence") for kind in ("truncate", "mask")}
    if mode not in known:
        raise InputError(f"vllm_importance_sampling_mode is {mode[:120]!r}; write one of {', '.join(known)}")
    if not (given["use_vllm"] and given["vllm_importance_sampling_correction"]):
        return None
    cap, floor = given["vllm_importance_sampling_clip_max"], given["vllm_importance_sampling_clip_min"]
    if not isinstance(cap, float) or cap < 1 or (isinstance(floor, float) and floor > 1):
        draft.lose(
            "vllm_importance_sampling_clip_max",
            "not here, because 1 must lie between the bounds of the weights; 3.0 stands",
        )
        cap, floor = 3.0, None
    return {"level": known[mode][0], "mode": known[mode][1], "cap": cap, "floor": floor}
