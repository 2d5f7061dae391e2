"""A seed of a study changes everything random except for the parts that `share` names, as the printed commands show."""

import itertools
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from saerl_lightning import cli
from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.study.folder import common_inputs
from saerl_lightning.study.processes import SubprocessExecutor
from saerl_lightning.study.report.gather import write_report
from saerl_lightning.study.seeding import behind_what_they_read, common_parts, fixed_inputs, stage_products
from saerl_lightning.study.spec import Stage, StudySpec
from saerl_lightning.study.stages import make_shared
from saerl_lightning.tools.study import print_run_commands

CONFIGS = Path(__file__).parents[2] / "configs"
POOL = 96
SLOTS = {  # every operation here draws something, some at two depths, one in a list
    "signals": {"class_path": "RandomSignals", "init_args": {"columns": 32}},
    "reference": {"class_path": "CorruptedCopies", "init_args": {"samples": 60}},
    "filtering": {
        "class_path": "MatchedFilter",
        "init_args": {"inner": {"class_path": "QualityFilter", "init_args": {"label": "quality", "drop": 0.2}}},
    },
    "clustering": {
        "class_path": "SameSizeClusters",
        "init_args": {"inner": {"class_path": "KMeansClusters", "init_args": {"clusters": 3}}},
    },
    "curriculum": {"class_path": "EasyToHard", "init_args": {"label": "difficulty", "labels": 60}},
    "mixing": {"class_path": "FullMixing", "init_args": {"window": 2}},
    "online": {
        "class_path": "Selection",
        "init_args": {"belief": {"class_path": "PromptBeta"}, "rule": {"class_path": "Nearest"}},
    },
    "extra": [{"class_path": "DiverseBatches", "init_args": {"window": 2, "components": 4}}],
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny") / "policy")
    build_tiny_policy(folder, ["What is 1 + 2?"], hidden_size=64, layers=1)
    return folder


@pytest.fixture
def datamodules(tmp_path, policy, capsys):
    """Makes the plans of the printed runs of seeds 0 and 1."""
    lines = [
        {
            "id": f"p{i}",
            "prompt": f"Ann has {i} cats. Bob has {3 * i + 1}. How many?",
            "answer": "1",
            "difficulty": i % 31,
        }
        for i in range(POOL)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    slots = {"train": str(tmp_path / "train.jsonl"), "batch_size": 4, **SLOTS}
    model = {"policy": {"path": policy}, "rewards": [{"class_path": "FormatReward", "init_args": {"pattern": "a"}}]}
    overlay = {"data": {"init_args": slots}, "model": {"init_args": model}, "trainer": {"accelerator": "cpu"}}
    (tmp_path / "slots.yaml").write_text(yaml.safe_dump(overlay))

    def make(**changes: object) -> list:
        study = {
            "name": "luck", "base": [str(CONFIGS / f"{name}.yaml") for name in ("grpo", "engine/hf")],
            "arms": {"saerl": {"configs": [str(tmp_path / "slots.yaml")]}}, "seeds": [0, 1], "budget": {"steps": 2},
            "baseline": "saerl", "metric": "loss", **changes,
        }  # fmt: skip
        path = tmp_path / "luck.yaml"
        path.write_text(yaml.safe_dump(study))
        capsys.readouterr()
        print_run_commands(StudySpec.read(path), path, tmp_path / f"study{len(list(tmp_path.iterdir()))}")
        return [planned(line, tmp_path) for line in capsys.readouterr().out.strip().splitlines()]

    return make


def planned(line: str, folder: Path):
    words = shlex.split(line)
    given = [word for word in words[words.index("fit") + 1 :] if not word.startswith("--ckpt_path")]
    return cli.run(["plan", *given, f"--out={folder / 'plan'}"]).datamodule


def seeds_in(thing: object) -> list[int]:
    """Every `seed` of an object and of what it is made of."""
    if not hasattr(thing, "__dict__"):
        return []
    own = [value for name, value in vars(thing).items() if name == "seed"]
    return own + list(itertools.chain.from_iterable(map(seeds_in, vars(thing).values())))


def drawn(data) -> dict[str, object]:
    """What each source of luck was told, and where it is the first to draw, what it drew."""
    pool = data.pool.prompts
    return {
        "order": data.shuffle_seed,
        "signals": (seeds_in(data.signals), data.signals.features(pool[:3]).tolist()),
        "reference": (seeds_in(data.reference), [(each.uid, each.text) for each in data.reference.prompts(pool)]),
        **{
            name: seeds_in(data.operations[name])
            for name in ("filtering", "clustering", "curriculum", "mixing", "online")
        },
        "extra": seeds_in(data.operations["extra.0"]),
    }


def test_two_seeds_have_two_plans_and_share_nothing_that_is_drawn(datamodules):
    one, other = datamodules()
    both = np.intersect1d(one.plan.rows, other.plan.rows)
    places = [np.argsort(data.plan.rows)[np.searchsorted(np.sort(data.plan.rows), both)] for data in (one, other)]
    assert abs(kendalltau(*places).statistic) < 0.35  # of noise; one plan for all seeds had 0.99 and more
    found, again = drawn(one), drawn(other)
    assert [len(found[name]) for name in ("filtering", "clustering", "curriculum")] == [3, 2, 2]  # inner ones, probes
    assert not [name for name in found if found[name] == again[name]]
    assert all(seed not in again[name] for name in ("filtering", "clustering", "curriculum") for seed in found[name])


def test_what_a_study_shares_is_common_to_its_seeds(datamodules):
    shared = ["order", "reference", "clustering", "extra"]
    found, again = map(drawn, datamodules(share=shared))
    assert [name for name in found if found[name] == again[name]] == shared


def test_an_arms_own_seed_is_another_draw_on_every_seed(datamodules, tmp_path):
    base = [str(CONFIGS / "grpo.yaml"), str(CONFIGS / "engine/hf.yaml"), str(tmp_path / "slots.yaml")]
    arms = {"one": {}, "two": {"flags": ["--data.signals.seed=1"]}}
    first, second = datamodules(seeds=[0], arms=arms, baseline="one", base=base)
    assert drawn(first)["signals"] != drawn(second)["signals"]
    assert drawn(first)["reference"] == drawn(second)["reference"]  # the arms of a seed are paired in all else


# -- stages ------------------------------------------------------------------------------------------------------------

WRITE = "python -c \"import sys; open(sys.argv[1], 'w').write(''.join(sys.argv[2:]))\" {made}"
STAGES = [
    {"name": "cold", "makes": "cold", "run": [f"{WRITE} cold {{seed}}"]},
    {"name": "SAE", "makes": "sae", "run": [f"{WRITE} sae {{seed}}"]},
    {"name": "features", "makes": "features", "run": ["cp {shared}/sae {made}"]},
]


def study(folder: Path, **changes: object) -> StudySpec:
    given = {
        "name": "small", "base": [str(CONFIGS / f"demo/{name}.yaml") for name in ("tasks", "grpo")],
        "arms": {"a": {"flags": ["--model.policy.path={shared}/cold", "--data.signal_cache={shared}/features"]}},
        "seeds": [3, 4], "budget": {"steps": 46}, "baseline": "a", "shared": STAGES, "share": ["cold"], **changes,
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(given))
    return StudySpec.read(folder / "small.yaml")


def test_each_seed_has_products_of_its_own_and_reads_them(tmp_path, capsys):
    spec, out = study(tmp_path), tmp_path / "out"
    make_shared(spec, out, SubprocessExecutor(), lambda text: None)
    files = [path for path in out.rglob("*") if path.suffix == "" and path.is_file()]
    made = {str(path.relative_to(out / "shared")): path.read_text() for path in files}
    assert made == {
        "cold": "cold3", "seed-3/sae": "sae3", "seed-4/sae": "sae4", "seed-3/features": "sae3", "seed-4/features": "sae4",
    }  # fmt: skip
    assert set(json.loads((out / "shared/stages.json").read_text())) == {
        "cold", "SAE, seed 3", "SAE, seed 4", "features, seed 3", "features, seed 4",
    }  # fmt: skip
    print_run_commands(spec, tmp_path / "small.yaml", tmp_path / "new")
    for seed, line in zip((3, 4), capsys.readouterr().out.strip().splitlines(), strict=True):
        words = shlex.split(line)
        assert f"--model.policy.path={tmp_path}/new/shared/cold" in words
        assert f"--data.signal_cache={tmp_path}/new/shared/seed-{seed}/features" in words


def test_a_stage_is_made_behind_those_that_it_reads_wherever_it_stands(tmp_path):
    """The features read the SAE, and the SAE the pool: they stand here the other way round."""
    sae = {"name": "SAE", "makes": "sae", "run": [f"{WRITE} sae {{seed}}", "cp {shared}/pool {made}"]}
    pool = {"name": "pool", "makes": "pool", "run": [f"{WRITE} pool {{seed}}"]}
    spec = study(tmp_path, shared=[STAGES[2], sae, pool, STAGES[0]], seeds=[3])
    names = [stage.name for stage, _ in stage_products(spec)]
    assert names == ["pool", "SAE", "features", "cold"]
    make_shared(spec, tmp_path / "out", SubprocessExecutor(), lambda text: None)
    assert (tmp_path / "out/shared/seed-3/features").read_text() == "pool3"
    each_other = [{**pool, "run": ["cp {shared}/sae {made}"]}, {**sae, "run": ["cp {shared}/pool {made}"]}]
    assert [stage.name for stage in behind_what_they_read(study(tmp_path, shared=[*each_other, STAGES[0]]).shared)] == [
        "cold", "pool", "SAE",
    ]  # fmt: skip


def test_a_pool_that_each_seed_draws_is_not_said_to_be_common(tmp_path):
    pool = {"name": "pool", "makes": "pool", "run": [f"{WRITE} pool {{seed}}"]}
    flags = ["--data.train={shared}/pool/train.jsonl"]
    drawn = study(tmp_path, shared=[*STAGES, pool], flags=flags)
    assert common_parts(drawn, []) == ["the questions", "cold"]
    assert common_parts(study(tmp_path, shared=[*STAGES, pool], flags=flags, share=["cold", "pool"]), [])[0] == (
        "the pool and the questions"
    )


def test_stages_know_the_program_that_their_user_called(tmp_path, monkeypatch):
    """Messages of a study's processes print it, and not how the study started them."""
    monkeypatch.setattr("sys.argv", ["/else/where/saerl", "study", "run"])
    code = "import sys; from saerl_lightning.errors import program; open(sys.argv[1], 'w').write(program())"
    say = f'{sys.executable} -c "{code}"'
    stages = [{"name": "cold", "makes": "cold", "run": [f"{say} {{made}}"]}]
    make_shared(study(tmp_path, shared=stages), tmp_path / "out", SubprocessExecutor(), lambda text: None)
    assert (tmp_path / "out/shared/cold").read_text() == "/else/where/saerl"


def test_the_report_names_the_weights_and_labels_that_all_seeds_read(tmp_path, capsys):
    """One policy and one labels file for all seeds; features are each seed's own, and the cold start is shared by name."""
    flags = ["--data.signal_cache={shared}/features"]
    arms = {"a": {"flags": flags}, "b": {"flags": [*flags, "--data.labels=own/labels.jsonl"]}}
    spec = study(tmp_path, arms=arms, flags=["--model.policy.path=one/policy"])
    print_run_commands(spec, tmp_path / "small.yaml", tmp_path / "out")
    write_report(tmp_path / "out")
    said = (tmp_path / "out/report/report.md").read_text()
    named = "the pool and the questions, cold, model.policy.path one/policy, data.labels own/labels.jsonl"
    assert f"All seeds have in common: {named}; no interval" in said
    assert f"common to all seeds: {named}\n" in said


def test_inputs_are_found_at_any_depth_and_the_questions_are_none():
    """As parsed: classes with `init_args`, lists of them; the pool's file is no input, nor is a product of a stage."""
    sae = {
        "class_path": "SAESignals",
        "init_args": {"sae": {"path": "saes/own", "sae_id": None}, "model": {"path": "{shared}/m"}},
    }
    model = {"policy": {"path": "p"}, "rewards": [{"class_path": "ModelReward", "init_args": {"path": "judge"}}]}
    one = {"model": {"init_args": model}, "data": {"init_args": {"train": {"path": "pool"}, "labels": None}}}
    other = {"model": {"init_args": model}, "data": {"init_args": {"signals": sae}}}
    found = ["model.policy.path p", "model.rewards.0.path judge", "data.signals.sae.path saes/own"]
    assert fixed_inputs({"one": one, "other": other}) == found
    lines = [
        "main.py fit --data.train.path=pool --data.model.path=only/here --model.policy.path p --model.save_to={made}"
    ]
    lines.append("main.py label --data.labels own.jsonl --model.policy.path={shared}/cold --data.val x --seed={seed}")
    stage = Stage("SAE", "sae", lines)
    assert fixed_inputs({"one": one}, [stage]) == [*found[:2], "data.model.path only/here", "data.labels own.jsonl"]


def test_inputs_of_a_stages_configs_are_named_unless_the_line_gives_another(tmp_path):
    """A file here, and a shipped one, whose policy a flag behind it replaces by a product of a stage."""
    own = {"data": {"init_args": {"labels": "l.jsonl", "train": {"path": "pool"}, "signals": {"sae": {"path": "s"}}}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    line = f"main.py label -c grpo.yaml -c model/smollm2_135m.yaml --config={tmp_path}/own.yaml -c gone.yaml --out {{made}}"
    policy, base = "model.policy.path models/smollm2-135m", "data.signals.model.path models/smollm2-135m"

    def named(*flags: str) -> list[str]:
        stages = [{"name": "labels", "makes": "l", "run": [" ".join([line, "--seed_everything {seed}", *flags])]}]
        return sorted(common_inputs(study(tmp_path, shared=stages, share=[]), {}))

    assert named() == sorted([policy, base, "data.labels l.jsonl", "data.signals.sae.path s"])
    assert named("--model.policy.path={shared}/cold") == named()[:-1]
    assert "data.labels other.jsonl" in named("--data.init_args.labels other.jsonl")
    assert "data.labels l.jsonl" not in named("--data.init_args.labels other.jsonl")
    # A part that is given as a whole holds nothing of the config's any more.
    assert named("--data.signals={shared}/cold") == sorted([policy, "data.labels l.jsonl"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": ["cald"]}, "share names 'cald', which nothing here is; write any of cold, SAE, features, order"),
        ({"share": ["cold", "features"]}, "share names the stage 'features', but it is made from that of 'SAE'"),
        (
            {"shared": [{"name": "labels", "makes": "l", "run": ["main.py label --out {made}"]}], "share": []},
            r"'labels' is made for each seed, but would be the same each time: write \{seed\} .* or share: \[labels\]",
        ),
    ],
)
def test_a_share_that_is_none_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **changes)
