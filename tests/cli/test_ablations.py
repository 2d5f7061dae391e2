"""What the overlays of configs/ablate mean once they are merged: the slot they name changes, and nothing else does.

Overlays of different slots are merged together, which they are made for, and which takes fewer command lines.
"""

from pathlib import Path

import pytest

from saerl_lightning import cli

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAYS = sorted(path.stem for path in (CONFIGS / "ablate").glob("*.yaml"))
SLOTS = ("signals", "filtering", "clustering", "curriculum", "mixing")

# Overlay -> slot -> class, and below it the arguments that must hold after merging.
EXPECTED = {
    "balanced_serving": {"extra": None},
    "hidden": {"signals": ("HiddenSignals", {"pooling": "mean", "components": None})},
    "pca": {"signals": ("HiddenSignals", {"components": 64})},
    "frozen_random_sae": {"signals": ("FrozenRandomSAESignals", {"pooling": "mean"})},
    "tfidf": {"signals": ("TextSignals", {})},
    "length_signals": {"signals": ("LengthSignals", {})},
    "random_signals": {"signals": ("RandomSignals", {"columns": 64})},
    "shuffled_signals": {"signals": ("ShuffledSignals", {})},
    "trees": {
        "filtering": ("QualityFilter", {"label": "quality", "drop": 0.1}),
        "curriculum": ("EasyToHard", {"label": "difficulty"}),
    },
    "hard_to_easy": {"curriculum": ("EasyToHard", {"label": "difficulty", "descending": True})},
    "level_order": {"curriculum": ("LabelOrder", {"label": "level", "descending": False})},
    "oracle_order": {"curriculum": ("LabelOrder", {"label": "difficulty", "descending": False})},
    "length_order": {"curriculum": ("LengthOrder", {})},
    "shuffled_order": {"curriculum": ("ShuffledOrder", {})},
    "topic_clusters": {"clustering": ("TopicClusters", {})},
    "random_clusters": {"clustering": ("RandomClusters", {"clusters": 16})},
    "same_size_clusters": {"clustering": ("SameSizeClusters", {})},
    "permuted_clusters": {"clustering": ("PermutedClusters", {"label": "difficulty", "bins": 10})},
    "diverse_batches": {"clustering": None, "mixing": None, "extra": None},
    "full_mixing": {"mixing": ("FullMixing", {"window": None})},
    "mixing_00": {"mixing": ("TailMixing", {"fraction": 0.0})},
    "mixing_05": {"mixing": ("TailMixing", {"fraction": 0.05})},
    "mixing_20": {"mixing": ("TailMixing", {"fraction": 0.2})},
    "mixing_50": {"mixing": ("TailMixing", {"fraction": 0.5})},
    "random_filter": {"filtering": ("RandomFilter", {"fraction": 0.1})},
    "oracle_filter": {"filtering": ("LabelFilter", {"label": "quality", "fraction": 0.1})},
    "length_filter": {"filtering": ("LengthFilter", {"fraction": 0.1})},
    "matched_filter": {"filtering": ("MatchedFilter", {"label": "difficulty", "bins": 10})},
    "random_reward": {},
    "no_operations": dict.fromkeys(("filtering", "clustering", "curriculum", "mixing")),
    **{f"no_{slot}": {slot: None} for slot in SLOTS},
}
INNER = {
    "shuffled_signals": ("signals", "SAESignals"),
    "shuffled_order": ("curriculum", "EasyToHard"),
    "same_size_clusters": ("clustering", "KMeansClusters"),
    "permuted_clusters": ("clustering", "KMeansClusters"),
    "matched_filter": ("filtering", "QualityFilter"),
}


def packed() -> list[list[str]]:
    """Overlays in as few groups as can be, no two of a group for the same slot."""
    groups: list[list[str]] = []
    for overlay in sorted(EXPECTED, key=lambda name: (-len(EXPECTED[name]), name)):
        free = (
            group for group in groups if not any(EXPECTED[other].keys() & EXPECTED[overlay].keys() for other in group)
        )
        group = next(free, None)
        if group is None:
            groups.append(group := [])
        group.append(overlay)
    return groups


def merged(monkeypatch, overlays: list[str]):
    monkeypatch.setattr(cli.RunCLI, "_run_subcommand", lambda self, subcommand: None)
    names = ["grpo", "saerl", *(f"ablate/{overlay}" for overlay in overlays)]
    files = [part for name in names for part in ("-c", str(CONFIGS / f"{name}.yaml"))]
    return cli.run(["fit", *files, "--trainer.accelerator=cpu"]).config.fit


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        return merged(patch, [])


def short(part) -> str | None:
    return None if part is None else part.class_path.rpartition(".")[2]


def test_every_overlay_is_expected_and_begins_with_a_reason():
    assert set(OVERLAYS) == set(EXPECTED)
    for overlay in OVERLAYS:
        first = (CONFIGS / "ablate" / f"{overlay}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ") and first.endswith(".") and "|" not in first


@pytest.mark.parametrize("overlays", packed(), ids=" ".join)
def test_each_changes_its_slot_and_nothing_else(monkeypatch, tmp_path, overlays, whole):
    monkeypatch.chdir(tmp_path)
    config = merged(monkeypatch, overlays)
    now, before = config.data.init_args, whole.data.init_args
    changed = {slot: expected for overlay in overlays for slot, expected in EXPECTED[overlay].items()}
    for slot in SLOTS:
        if slot not in changed:
            assert now[slot] == before[slot], slot
        elif changed[slot] is None:
            assert now[slot] is None
        else:
            name, arguments = changed[slot]
            assert short(now[slot]) == name
            given = now[slot].get("init_args", {})
            assert {key: given[key] for key in arguments} == arguments
    for slot, name in (INNER[overlay] for overlay in overlays if overlay in INNER):
        assert (
            now[slot].init_args.inner == before[slot] and short(before[slot]) == name
        )  # the inner is the whole overlay's
    if "trees" in overlays:
        assert {short(now[slot].init_args.probe) for slot in ("filtering", "curriculum")} == {"TreeProbe"}
    if "balanced_serving" in overlays:
        assert [short(each) for each in now.extra] == ["BalancedServing"]
    if "diverse_batches" in overlays:
        assert [short(each) for each in now.extra] == ["DiverseBatches"]
    if "random_reward" in overlays:
        rewards = [(short(each), each.init_args.weight) for each in config.model.init_args.rewards]
        assert rewards == [("MathReward", 0.0), ("RandomReward", 1.0)]
    else:
        assert config.model == whole.model
