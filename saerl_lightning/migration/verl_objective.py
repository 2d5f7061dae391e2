"""Converts verl's advantage estimator and loss to an objective: its class, clip, KL, entropy and correction."""

from __future__ import annotations

from saerl_lightning.errors import InputError
from saerl_lightning.migration.arguments import Given
from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.migration.shared import entropy, kl
from saerl_lightning.migration.verl_table import ACTOR

KL = {"kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}
AGGREGATED = {"token-mean": "DAPO", "seq-mean-token-mean": "GRPO", "seq-mean-token-sum-norm": "DrGRPO"}
ESTIMATORS = {
    "grpo": "",  # by loss_agg_mode
    "grpo_vectorized": "",
    "rloo": "RLOO",
    "rloo_vectorized": "RLOO",
    "reinforce_plus_plus": "ReinforcePP",
    "reinforce_plus_plus_baseline": "ReinforcePP",
}


def _class_of(given: Given, draft: Draft) -> str | None:
    """Returns the objective's class; None, with the reason recorded, if there is none."""
    estimator = str(given["algorithm.adv_estimator"])
    if estimator not in ESTIMATORS:
        why = "there is no critic" if estimator == "gae" else f"no objective is '{estimator[:80]}'"
        draft.lose(
            "algorithm.adv_estimator", f"not here, because {why}; the baseline's GRPO stays: choose an objective"
        )
        return None
    mode = str(given[ACTOR + "policy_loss.loss_mode"])
    if mode not in ("vanilla", "gspo", "cispo"):
        draft.lose(
            ACTOR + "policy_loss.loss_mode", f"not here, because no objective is '{mode[:80]}'; vanilla's stands"
        )
    elif mode != "vanilla" and not ESTIMATORS[estimator]:
        return {"gspo": "GSPO", "cispo": "CISPO"}[mode]
    if ESTIMATORS[estimator]:
        return ESTIMATORS[estimator]
    how = given.one_of(ACTOR + "loss_agg_mode", [*AGGREGATED, "seq-mean-token-sum"])
    if how not in AGGREGATED:
        draft.lose(
            ACTOR + "loss_agg_mode",
            "not here, because DrGRPO divides this sum by max_tokens too, which scales the rate",
        )
    return AGGREGATED.get(how, "DrGRPO")


def objective(given: Given, draft: Draft) -> None:
    """Converts the loss, with clip, KL, entropy and correction, to an objective."""
    name = _class_of(given, draft)
    if name is None:
        return
    clip = given.number(ACTOR + "clip_ratio")
    low, high = (
        given.number(ACTOR + each) if ACTOR + each in given else clip for each in ("clip_ratio_low", "clip_ratio_high")
    )
    arguments: dict[str, object] = {}
    if name == "CISPO":
        arguments |= {"ratio_cap": 1 + high, "ratio_floor": 1 - low}
    else:
        bound = given.number(ACTOR + "clip_ratio_c")
        if bound <= 1 + high:
            draft.lose(
                ACTOR + "clip_ratio_c", f"not here, because a bound of {bound:g} is inside the clip range; write more"
            )
        arguments |= {"clip_low": low, "clip_high": high, "dual_clip": bound if bound > 1 + high else None}
    divided = bool(given["algorithm.norm_adv_by_std_in_grpo"])
    if name == "GRPO":
        arguments["scale_by_std"] = divided
    elif name == "ReinforcePP":
        baseline = given["algorithm.adv_estimator"] == "reinforce_plus_plus_baseline"
        arguments["baseline"] = "group" if baseline else "none"
    elif divided == (name == "DrGRPO") and name != "RLOO":
        does = "never divides" if divided else "divides"
        draft.lose("algorithm.norm_adv_by_std_in_grpo", f"not here, because {name} {does} by the group's deviation")
    arguments["kl"] = _kl(given, draft)
    arguments["entropy"] = entropy(given.number(ACTOR + "entropy_coeff"))
    arguments["correction"] = _correction(given, draft)
    draft.put("model.objective", made(name, **arguments), "algorithm.adv_estimator", ACTOR + "loss_agg_mode")


def _kl(given: Given, draft: Draft) -> dict[str, object] | None:
    in_loss, in_reward = given[ACTOR + "use_kl_loss"], given["algorithm.use_kl_in_reward"]
    if in_loss and in_reward:
        draft.lose(
            "algorithm.use_kl_in_reward", "not here with use_kl_loss, because there is one KL; that of the loss stands"
        )
    name, weight = (
        (ACTOR + "kl_loss_type", ACTOR + "kl_loss_coef")
        if in_loss
        else ("algorithm.kl_penalty", "algorithm.kl_ctrl.kl_coef")
    )
    if not in_loss and not in_reward:
        return None
    if in_reward and given["algorithm.kl_ctrl.type"] != "fixed":
        draft.lose("algorithm.kl_ctrl.type", "not here, because the weight of the KL is constant")
    kind = str(given[name])
    if kind.removesuffix("+") not in KL:
        draft.lose(name, f"not here, because '{kind[:80]}' is none of the estimators k1, k2, k3; k3 stands")
    elif kind.endswith("+"):
        draft.lose(
            name, "not here, because an estimator has one gradient: k2 in the loss has the gradient this one borrows"
        )
    return kl(given.number(weight), KL.get(kind.removesuffix("+"), "k3"), "loss" if in_loss else "reward")


def _correction(given: Given, draft: Draft) -> dict[str, object] | None:
    level = given["algorithm.rollout_correction.rollout_is"]
    if level is None:
        return None
    if level not in ("token", "sequence"):
        raise InputError(
            f"algorithm.rollout_correction.rollout_is is {str(level)[:80]!r}; write token, sequence or null"
        )
    cap = given.number("algorithm.rollout_correction.rollout_is_threshold")
    if cap < 1:
        draft.lose(
            "algorithm.rollout_correction.rollout_is_threshold", "not here below 1, because 1 must be a possible weight"
        )
    return {"level": level, "mode": "truncate", "cap": max(1.0, cap), "floor": None}
