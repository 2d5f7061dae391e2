"""Rewards of verl's trainer: a function of the user's own, a reward model, and the penalty of long completions."""

from __future__ import annotations

from saerl_lightning.migration.arguments import Given
from saerl_lightning.migration.draft import Draft, made

# As verl reads them: where an argument stood before 0.8 first, then its place in the section `reward`.
FUNCTION = ("custom_reward_function.", "reward.custom_reward_function.")
WORKERS = ("reward_model.num_workers", "reward.num_workers")
MANAGER = ("reward_manager.name", "reward_model.reward_manager", "reward.reward_manager.name")
MANAGER_SOURCE = ("reward_manager.source", "reward_model.reward_loop_source", "reward.reward_manager.source")
MODEL_ENABLE = ("reward_model.enable", "reward.reward_model.enable")
MODEL_PATH = ("reward_model.model.path", "reward.reward_model.model_path")
LONGEST = ("reward_model.reward_kwargs.max_resp_len", "reward.reward_kwargs.max_resp_len")
BUFFER = (
    "reward_model.overlong_buffer.",
    "reward_model.reward_kwargs.overlong_buffer_cfg.",
    "reward.reward_kwargs.overlong_buffer_cfg.",
)
EACH = ("naive", "dapo", "prime", "remote", "rate_limited")  # managers that call the function for each completion
HOW = "write model.rewards (docs/howto/reward.md)"


def rewards(given: Given, draft: Draft) -> None:
    """Converts what grades completions; says so where another reward stands in its place."""
    first, names = _first(given, draft)
    stands = [made("MathReward")] if first is None else [first]
    if first is None:
        names = ("in place of verl's reward, which was not carried",)
    for buffer in BUFFER:
        if given[buffer + "enable"]:
            longest, length = _value(given, LONGEST) or given["data.max_response_length"], given[buffer + "len"]
            weight = given[buffer + "penalty_factor"]
            stands.append(made("LengthReward", max_tokens=longest, buffer=length, weight=weight))
            names = (*names, buffer + "enable")
            break
    draft.put("model.rewards", stands, *names)


def _first(given: Given, draft: Draft) -> tuple[dict[str, object] | None, tuple[str, ...]]:
    """Returns the reward, with the arguments that it comes from; None, with the reason recorded, if there is none."""
    section = FUNCTION[0] if given.values.get(FUNCTION[0] + "path") is not None else FUNCTION[1]
    unread = [
        each for each in draft.lost if each.startswith(FUNCTION) or each in (*MANAGER, *MODEL_ENABLE, *MODEL_PATH)
    ]
    model = _first_given(given, MODEL_ENABLE)
    if unread:
        _another(draft, f"{unread[0]} could not be read, see below")
    elif (unfit := _manager(given)) is not None:
        _another(draft, unfit)
    elif (path := given[section + "path"]) is not None:
        if model is not None and given[model]:
            draft.lose(
                model, "not here, because a function reaches no server of a model: use ModelReward or JudgeReward"
            )
        return _function(given, section, str(path)), (section + "path", section + "name")
    elif model is None or not given[model]:
        _another(
            draft, f"the file names no function, and verl's own scorers, one for each data_source, are not here; {HOW}"
        )
    elif (place := _first_given(given, MODEL_PATH)) is None:
        _another(draft, f"{model} is true, and the file names no model; {HOW}")
    else:
        return made("ModelReward", path=given[place]), (place,)
    return None, ()


def _function(given: Given, section: str, path: str) -> dict[str, object]:
    """Returns the function as a reward: its name, its own arguments, and its processes where the file says how many."""
    package = path.startswith("pkg://")  # verl's mark of a module
    place = path.removeprefix("pkg://").replace("/", ".") if package else path.removeprefix("file://")
    function = f"{place}:{given[section + 'name']}"
    settings = {"arguments": given[section + "reward_kwargs"], "workers": _value(given, WORKERS)}
    return made("FunctionReward", function=function, **{name: each for name, each in settings.items() if each})


def _manager(given: Given) -> str | None:
    """Returns why the file's reward manager can't be carried; None if the reward does not depend on it."""
    name, source = _first_given(given, MANAGER), _first_given(given, MANAGER_SOURCE)
    if source is not None and given[source] not in ("register", None):
        return f"{source} is {str(given[source])[:80]}, a reward manager of your own, which is not here; {HOW}"
    if name is not None and given[name] not in EACH:
        return f"{name} is {str(given[name])[:80]}, which does not grade each completion by itself; {HOW}"
    return None


def _another(draft: Draft, why: str) -> None:
    draft.other_reward = f"{why}. MathReward stands in its place"


def _value(given: Given, names: tuple[str, ...]) -> object:
    name = _first_given(given, names)
    return None if name is None else given[name]


def _first_given(given: Given, names: list[str] | tuple[str, ...]) -> str | None:
    """Returns the first of several names of one argument that the file gives a value; None if it gives none."""
    return next((name for name in names if given.values.get(name) is not None), None)
