"""Parts that a user gives to a constructor in Python: judged there, by class, argument, what came and what to write."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import saerl_lightning as sl
from saerl_lightning.data.planning import make_plan
from saerl_lightning.errors import InputError, shown
from saerl_lightning.given.parts import EXAMPLES, require_part
from tests.test_public_names import SEAMS, shipped


class LastDigit(sl.Curriculum):
    def difficulty(self, plan, prompts, features):
        return [int(prompt.answer) % 10 for prompt in prompts]


class Short(sl.Curriculum):
    def difficulty(self, plan):
        return []


class Remembers(sl.DataCallback):
    def apply(self, plan, prompts, features):
        return plan


class AppliesPlan(sl.DataCallback):
    def apply(self, plan):
        return plan


class NeedsMethod(Remembers):
    def needs_features(self):
        return True


class Defaults(sl.Curriculum):
    def difficulty(self, *given, more=1):
        return []


class Unprompted(sl.SignalSource):
    def features(self):
        return []

    def fingerprint(self, prompts):
        return ""


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def data(**given):
    return sl.PromptDataModule(**given)


def module(kind=sl.GRPOModule, **given):
    parts = dict(policy=sl.Policy("p"), engine=sl.HFEngine(), rewards=[sl.MathReward()])
    parts |= {} if kind is sl.SFTModule else dict(objective=sl.GRPO())
    return kind(**(parts | given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"curriculum": LastDigit}, r"curriculum is the class LastDigit; write an object of it, LastDigit\(\)"),
        ({"curriculum": sl.ShuffledOrder}, r"curriculum is the class ShuffledOrder; .* ShuffledOrder\(…\)"),
        (
            {"curriculum": sl.LengthFilter()},
            r"curriculum is a LengthFilter, no Curriculum; write filtering=LengthFilter",
        ),
        ({"filtering": LastDigit()}, r"filtering is a LastDigit, no Filtering; write curriculum=LastDigit"),
        ({"mixing": Remembers()}, r"mixing is a Remembers, no Mixing; write extra=\[Remembers\(\)\]"),
        ({"clustering": "topics"}, r"clustering is 'topics'; write a Clustering, as clustering=\w+\(\)"),
        ({"curriculum": length}, r"curriculum is the function length; write a Curriculum"),
        ({"extra": Remembers()}, r"extra is a Remembers; write a list, extra=\[Remembers\(\)\]"),
        ({"extra": [Remembers]}, r"extra\[0\] is the class Remembers; write an object of it, Remembers\(\)"),
        ({"extra": [Remembers(), 3]}, r"extra\[1\] is 3; write a DataCallback"),
        ({"extra": 3}, r"extra is 3; write a list"),
        ({"signals": sl.RandomSignals}, r"signals is the class RandomSignals; .* RandomSignals\(\)"),
        ({"signals": [1]}, r"signals is a list; write a SignalSource, as signals=RandomSignals\(\)"),
        ({"chat": "Be brief."}, r"chat is 'Be brief\.'; write a ChatTemplate, as chat=ChatTemplate\("),
        ({"chat": None}, r"chat is None; write a ChatTemplate"),
        ({"val_sampling": 4}, r"val_sampling is 4; write a Sampling"),
        ({"reference": "more.jsonl"}, r"reference is 'more\.jsonl'; write a ProbeReference"),
        (
            {"extra": [AppliesPlan()]},
            r"AppliesPlan\.apply takes \(plan\); write def apply\(self, plan, prompts, features\)",
        ),
        ({"curriculum": Short()}, r"Short\.difficulty takes \(plan\); write def difficulty\(self, plan, prompts, feat"),
        ({"signals": Unprompted()}, r"Unprompted\.features takes \(\); write def features\(self, prompts\)"),
        ({"extra": [NeedsMethod()]}, r"NeedsMethod\.needs_features is a method; write @property above it"),
    ],
)
def test_a_datamodule_judges_its_parts(given, says):
    with pytest.raises(InputError, match=f"PromptDataModule.*{says}") as refusal:
        data(**given)
    assert "\n" not in str(refusal.value) and " at 0x" not in str(refusal.value)


def test_a_datamodule_takes_what_fits():
    made = data(curriculum=LastDigit(), extra=(Remembers(), Defaults()), filtering=None)
    assert [type(each) for each in made.operations.values()] == [LastDigit, Remembers, Defaults]


ADAMW = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-5)


@pytest.mark.parametrize("kind", [sl.GRPOModule, sl.SFTModule])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policy": "smollm"}, r"policy is 'smollm'; write a Policy, as policy=Policy\("),
        ({"policy": None}, r"policy is None; write a Policy"),
        ({"engine": sl.HFEngine}, r"engine is the class HFEngine; write an object of it, HFEngine\(\)"),
        ({"engine": "hf"}, r"engine is 'hf'; write a RolloutEngine, as engine=HFEngine\(\)"),
        (
            {"optimizer": ADAMW},
            r"optimizer is an AdamW; .* optimizer=lambda parameters: AdamW\(parameters, lr=3e-05\)",
        ),
        ({"optimizer": "AdamW"}, r"optimizer is 'AdamW'; .*lambda parameters: AdamW\(parameters, lr=1e-05\)"),
        ({"optimizer": None}, r"optimizer is None; "),
        (
            {"lr_scheduler": LambdaLR(ADAMW, lambda step: 1.0)},
            r"lr_scheduler is a LambdaLR; .* lr_scheduler=lambda optimizer: LambdaLR\(optimizer, …\)",
        ),
        ({"lr_scheduler": "cosine"}, r"lr_scheduler is 'cosine'; .*lambda optimizer: CosineAnnealingLR\(optimizer, "),
        ({"rewards": sl.MathReward()}, r"rewards is a MathReward; write a list, rewards=\[MathReward\(\)\]"),
        ({"rewards": length}, r"rewards is the function length; write a list, rewards=\[length\]"),
        ({"rewards": [sl.MathReward]}, r"rewards\[0\] is the class MathReward; write an object of it, MathReward\(\)"),
        (
            {"rewards": [sl.MathReward(), 1.0]},
            r"rewards\[1\] is 1\.0; write a Reward, as MathReward\(\), or a function",
        ),
        ({"rewards": [lambda text: 1.0]}, r"the function <lambda> is no reward: its parameters are \(text\)"),
        ({"rewards": "mine.py:accuracy"}, r"rewards is 'mine\.py:accuracy'; write a list"),
        (
            {"rewards": ["mine.py:accuracy"]},
            r"rewards\[0\] is 'mine\.py:accuracy'; .* FunctionReward\('mine\.py:accuracy'\)",
        ),
    ],
)
def test_a_module_judges_its_parts(given, says, kind):
    with pytest.raises(InputError, match=says) as refusal:
        module(kind, **given)
    assert "\n" not in str(refusal.value) and " at 0x" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective": sl.GRPO}, r"GRPOModule\.objective is the class GRPO; write an object of it, GRPO\(\)"),
        ({"objective": "grpo"}, r"GRPOModule\.objective is 'grpo'; write an Objective, as objective=GRPO\(\)"),
        ({"sampling": {"group_size": 4}}, r"GRPOModule\.sampling is a dict; write a Sampling, as sampling=Sampling\("),
        ({"guard": 0.1}, r"GRPOModule\.guard is 0\.1; write a MismatchGuard"),
        (
            {"dynamic_sampling": True},
            r"GRPOModule\.dynamic_sampling is True; write a Rounds, as dynamic_sampling=DynamicSampling",
        ),
        ({"updates_per_batch": "2"}, r"GRPOModule\.updates_per_batch is '2'; write a whole number from 1"),
        ({"max_grad_norm": [None]}, r"GRPOModule\.max_grad_norm is a list; write a number above 0"),
        ({"micro_tokens": 2.5}, r"GRPOModule\.micro_tokens is 2\.5; write a whole number from 1"),
    ],
)
def test_grpo_judges_the_parts_that_it_has_alone(given, says):
    with pytest.raises(InputError, match=says):
        module(**given)


def test_parts_of_parts_are_judged():
    for make, says in (
        (lambda: sl.ShuffledOrder(LastDigit), r"ShuffledOrder\.inner is the class LastDigit"),
        (lambda: sl.MatchedFilter(sl.LengthOrder()), r"MatchedFilter\.inner is a LengthOrder; write a Filtering"),
        (lambda: sl.EasyToHard(probe=sl.RidgeProbe), r"EasyToHard\.probe is the class RidgeProbe"),
        (lambda: sl.ShuffledSignals("random"), r"ShuffledSignals\.inner is 'random'"),
        (lambda: sl.CachedSignals(sl.RandomSignals), r"CachedSignals\.inner is the class RandomSignals"),
        (lambda: sl.HiddenSignals("gpt2"), r"HiddenSignals\.model is 'gpt2'; write a ReadModel"),
        (lambda: sl.GRPO(kl=0.1), r"GRPO\.kl is 0\.1; write a KLPenalty"),
        (lambda: sl.SAEModule(optimizer=ADAMW), r"SAEModule\.optimizer is an AdamW"),
        (lambda: make_plan([], {}, 2, None, None, {"curriculum": LastDigit}), r"curriculum'\] is the class LastDigit"),
    ):
        with pytest.raises(InputError, match=says):
            make()


def test_a_function_is_a_reward():
    made = module(rewards=[length, sl.MathReward()])
    assert [type(each) for each in made.rewards] == [sl.FunctionReward, sl.MathReward]
    assert [each.name for each in made.rewards] == ["length", "math"]


def test_functions_make_optimisers():
    made = module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0), lr_scheduler=None)
    assert type(made.optimizer([torch.nn.Parameter(torch.zeros(1))])) is torch.optim.SGD
    assert module(optimizer=torch.optim.AdamW).optimizer is torch.optim.AdamW


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert data(batch_size=numpy.int64(4)).batch_size == 4
    with pytest.raises(InputError, match=r"batch_size is 0; write a whole number from 1"):
        data(batch_size=numpy.int64(0))


@pytest.mark.parametrize("part", EXAMPLES)
def test_the_part_that_a_refusal_tells_to_write_is_of_the_right_kind(part):
    made = eval(EXAMPLES[part], {**vars(sl), **{name: getattr(sl, name) for name in sl.__all__}})
    kinds = {each.__name__ for each in type(made).__mro__}
    assert part in kinds


@pytest.mark.parametrize("seam", SEAMS)
def test_every_shipped_part_has_the_methods_that_are_called(seam):
    """Signatures are looked at without running a constructor, so that classes which need arguments are judged too."""
    judged = []
    for name in shipped(seam):
        kind = getattr(sl, name)
        require_part(name, kind.__new__(kind), seam)
        judged.append(kind)
    assert judged and all(issubclass(kind, seam) for kind in judged)


def test_a_value_is_shown_without_its_address():
    class Anything:
        pass

    for value, text in (
        (length, "the function length"),
        (len, "the function len"),
        (Anything, "the class Anything"),
        (Anything(), "an Anything"),
        ("a" * 100, "'" + "a" * 79),
        (None, "None"),
        ([1], "a list"),
    ):
        assert shown(value) == text


def test_a_path_may_be_an_object(tmp_path):
    """It becomes a text, which is what a checkpoint and a config can hold."""
    place = tmp_path / "place"
    assert sl.Policy(place).path == sl.SAESource(place).path == str(place)
    assert sl.CachedSignals(sl.RandomSignals(), place).folder == str(place)
    made = data(signal_cache=place, labels=place)
    assert made.signal_cache == made.labels == str(place)
    assert sl.SAEModule(save_to=place).save_to == str(place)
    assert sl.ChatTemplate(template=place).template == str(place)
    assert sl.build_tiny_policy(place, ["1 + 1"], hidden_size=32, layers=1) == place
    for make, says in (
        (lambda: sl.Policy(3), r"Policy\.path is 3; write a text"),
        (lambda: sl.Policy(None), r"Policy\.path is None; write a text"),
        (lambda: sl.LabelOrder(label=1), r"LabelOrder\.label is 1; write a text"),
        (lambda: data(labels=1.0), r"PromptDataModule\.labels is 1\.0; write a text"),
    ):
        with pytest.raises(InputError, match=says):
            make()


def test_reading_a_plan_or_tokenizer_too_early_says_what_makes_it():
    with pytest.raises(InputError, match=r"no plan yet: trainer\.fit\(module, data\) .* data\.set_up_plan\(\)"):
        data().plan  # noqa: B018
    with pytest.raises(InputError, match=r"no tokenizer: .* data\.tokenizer = policy\.load_tokenizer\(\)"):
        data(train=sl.ListPrompts(["1 + 1"])).set_up_plan()
    read = sl.ActivationDataModule(sl.ReadModel("p", 1), "prompts.jsonl")
    for name in ("training", "held_out"):
        with pytest.raises(InputError, match=r"the text is not read yet: call .* data\.setup\(\)"):
            getattr(read, name)


def test_large_records_are_shown_in_a_line():
    rollouts = sl.Rollouts.pack([[5, 6]], [[7], [8]], [[-1.0], [-1.0]], [False, False], ["a", "b"], 2, 0)
    assert repr(rollouts) == "<Rollouts: 2 completions, 2 a prompt, in rows of 3 tokens>"
    counts = torch.tensor([1.0]), torch.tensor([2]), torch.tensor([True]), torch.tensor([9])
    assert repr(sl.Outcomes(["p"], torch.ones(1, 2), *counts)) == "<Outcomes: 1 prompts, mean pass rate 0.5>"
