"""`python main.py label`: what it measures, and that a measurement which was killed ends on the same labels."""

import copy
import json
from pathlib import Path

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.verbs.label import weights_digest

PROMPTS = 7


class AToM(Reward):
    """Right if a letter from a to m occurs; the grader fails on every completion of train-3 and one of train-5."""

    def __call__(self, prompts, rollouts):
        right = torch.tensor([any("a" <= letter <= "m" for letter in text) for text in rollouts.texts])
        scores = right.float().reshape(len(prompts), -1)
        for p, prompt in enumerate(prompts):
            scores[p, : {"train-3": 99, "train-5": 1}.get(prompt.uid, 0)] = torch.nan
        return scores


class BaseAndAdapters(HFEngine):
    """Keeps base weights and takes adapters, as vLLM does with LoRA: whole weights are never loaded into it."""

    def start(self, model, tokenizer, max_model_len):
        self.base = Policy(model.name_or_path).load_model()
        self.rest = (tokenizer, max_model_len)
        super().start(self.base, *self.rest)

    @property
    def takes_adapters(self):
        return True

    def load_weights(self, named_tensors, version):
        raise AssertionError("this engine was asked to take whole weights")

    def load_adapters(self, folder, version):
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(copy.deepcopy(self.base), folder).merge_and_unload()
        super().start(adapted, *self.rest)
        super().load_weights(adapted.named_parameters(), version)


class Doubled(AToM):
    """Grades that are no share."""

    def __call__(self, prompts, rollouts):
        return 2 * super().__call__(prompts, rollouts)


def command(workplace, out: Path, *flags: str) -> list[str]:
    rewards = json.dumps([{"class_path": f"{__name__}.AToM"}])
    small = [f"--out={out}", f"--prompts={PROMPTS}", "--samples=6", "--seed=3", "--data.val_batch_size=2"]
    return workplace.command("label", *small, f"--model.rewards={rewards}", *flags)


def lines(file: Path) -> dict[str, dict]:
    """The labels by uid, without the line that says how they were measured."""
    records = [json.loads(line) for line in file.read_text().splitlines()][1:]
    assert len({each["uid"] for each in records}) == len(records)
    return {each["uid"]: each for each in records}


@pytest.fixture
def measured(workplace, door) -> Path:
    out = workplace.folder / "labels.jsonl"
    ended = door(command(workplace, out))
    assert ended.code == 0, ended.stderr
    return out


def test_every_line_is_a_mean_grade_with_its_error(measured, workplace):
    labels = lines(measured)
    assert len(labels) == PROMPTS
    for uid, each in labels.items():
        n = {"train-3": 0, "train-5": 5}.get(uid, 6)
        assert each["samples"] == n
        if not n:
            assert each["pass_rate"] is each["pass_rate_se"] is each["difficulty"] is None
            continue
        p = each["pass_rate"]
        assert round(p * n, 9).is_integer()
        assert each["pass_rate_se"] == pytest.approx((p * (1 - p) / n) ** 0.5)
        assert each["difficulty"] == pytest.approx(100 * (1 - p))
    assert len({each["pass_rate"] for each in labels.values()}) > 2  # chance decides, and not all alike
    assert not workplace.run_dir.exists()


@pytest.mark.slow
def test_a_measurement_that_was_killed_goes_on_to_the_same_labels(measured, workplace, door, monkeypatch):
    whole = measured.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    again = workplace.folder / "again.jsonl"
    asked = []
    generate = HFEngine.generate

    def counted(self, prompt_ids, sampling):
        asked.append(len(prompt_ids))
        return generate(self, prompt_ids, sampling)

    monkeypatch.setattr(HFEngine, "generate", counted)
    for cut, batches in {9: 4, ends[0]: 4, ends[3] + 25: 3, ends[4]: 2, len(whole): 0}.items():
        again.write_bytes(whole[:cut])
        asked.clear()
        assert door(command(workplace, again)).code == 0
        assert again.read_bytes() == whole, cut
        assert len(asked) == batches


@pytest.mark.slow
def test_a_label_run_killed_in_the_middle_of_a_batch_goes_on_to_the_same_labels(measured, workplace, door, monkeypatch):
    again = workplace.folder / "again.jsonl"
    generate, calls = HFEngine.generate, []

    def killed(self, prompt_ids, sampling):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompt_ids, sampling)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HFEngine, "generate", killed)
        door(command(workplace, again))
    assert len(lines(again)) == 4
    assert door(command(workplace, again)).code == 0
    assert again.read_bytes() == measured.read_bytes()


def test_it_says_what_came_out_and_the_flag_that_uses_it(measured, workplace, door, capsys):
    from saerl_lightning import cli

    cli.run(command(workplace, measured))
    said = capsys.readouterr().out
    rates = [each["pass_rate"] for each in lines(measured).values() if each["pass_rate"] is not None]
    assert f"{len(rates)} prompts, mean pass rate {sum(rates) / len(rates):.3f}" in said
    assert f"--data.labels {measured}" in said
    flags = ["--data.labels", str(measured), "--data.curriculum=LabelOrder", "--trainer.max_steps=1"]
    run = cli.run(workplace.command("fit", *flags))
    expected = {uid: each["difficulty"] for uid, each in lines(measured).items() if each["samples"]}
    known = {p.uid: d for p, d in zip(run.datamodule.pool.prompts, run.datamodule.plan.difficulty, strict=True)}
    assert {uid: known[uid] for uid in expected} == expected
    assert known["train-3"] == 3  # not measured: the data's own


def test_label_takes_all_prompts_that_are_not_too_long_if_more_are_asked_for(workplace, door):
    records = [json.loads(line) for line in workplace.train.read_text().splitlines()]
    records[4]["prompt"] = "why? " * 90
    workplace.train.write_text("".join(json.dumps(each) + "\n" for each in records))
    out = workplace.folder / "labels.jsonl"
    assert door(command(workplace, out, "--prompts=500", "--samples=2")).code == 0
    assert lines(out).keys() == {f"train-{i}" for i in range(12)} - {"train-4"}


def test_what_it_refuses(measured, workplace, door):
    before = measured.read_bytes()
    other = build_tiny_policy(str(workplace.folder / "other"), ["what is 3 + 4?"] * 9, hidden_size=64, layers=2)
    refusals = {
        "--seed=4": "seed 3 there, 4 now",
        "--samples=5": "samples 6 there, 5 now",
        "--prompts=3": "count 7 there, 3 now",
        "--model.sampling.temperature=0.5": "temperature 1.0 there, 0.5 now",
        f"--model.policy.path={other}": "weights '",
        "--data.shuffle_seed=9": "",
    }
    for flag, said in refusals.items():
        ended = door(command(workplace, measured, flag))
        assert ended.code == (2 if said else 0), flag
        assert not said or said in ended.error
    assert measured.read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--samples=0", "--samples is 0; write a whole number from 1 to"),
        ("--prompts=0", "--prompts is 0; write a whole number from 1 to"),
        (f'--model.rewards=[{{"class_path": "{__name__}.Doubled"}}]', "Doubled, gave 0 to 2; a pass rate needs"),
        ("--data.chat.max_prompt_tokens=3", "none of the 12 training prompts is short enough"),
        ("--model.sampling.max_tokens=2000", "beyond the policy's context of 2048"),
        ("--trainer.devices=2", "one process, but there are 2"),
    ],
)
def test_label_refuses_bad_input_in_one_line(workplace, door, flag, said):
    out = workplace.folder / "labels.jsonl"
    ended = door(command(workplace, out, flag))
    assert ended.code == 2 and said in ended.error
    assert not out.exists() or not lines(out)


def test_weights_of_a_real_size_are_named_to_their_last_value():
    """More values than a float32 can count, as in the embedding of a model of 135 million parameters."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(49152, 576, dtype=torch.bfloat16))
    named = weights_digest(model)
    with torch.no_grad():
        model.weight[-1, -1] = 1.0
    assert weights_digest(model) != named


def test_a_policy_with_adapters_is_labelled_with_them(workplace, door, monkeypatch):
    """The other side is a plain policy with the weights of the adapted one, W + B A (alpha / rank), worked out here."""
    lora, adapted = LoRA(rank=2, alpha=16), workplace.folder / "adapted"
    load = Policy.with_adapters

    def trained(self, model):
        wrapped = load(self, model)
        torch.manual_seed(5)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.3)
        return wrapped

    monkeypatch.setattr(Policy, "with_adapters", trained)
    weights = Policy(str(workplace.policy), lora=lora).load_model().state_dict()
    plain = Policy(str(workplace.policy)).load_model()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            a = weights.get(f"base_model.model.{name.replace('.weight', '.lora_A.default.weight')}")
            if a is not None:
                b = weights[f"base_model.model.{name.replace('.weight', '.lora_B.default.weight')}"]
                weight += b @ a * (16 / 2)
    plain.save_pretrained(adapted)
    Policy(str(workplace.policy)).load_tokenizer().save_pretrained(adapted)
    outs = {name: workplace.folder / f"{name}.jsonl" for name in ("base", "adapters", "merged", "plain")}
    flags = {
        "base": [],
        "adapters": ["--model.policy.lora={rank: 2, alpha: 16}", f"--model.engine={__name__}.BaseAndAdapters"],
        "merged": ["--model.policy.lora={rank: 2, alpha: 16}"],
        "plain": [f"--model.policy.path={adapted}"],
    }
    for name, out in outs.items():
        ended = door(command(workplace, out, *flags[name]))
        assert ended.code == 0, ended.stderr[-2000:]
    labels = {name: {uid: each["pass_rate"] for uid, each in lines(out).items()} for name, out in outs.items()}
    assert labels["adapters"] == labels["merged"] == labels["plain"] != labels["base"]
