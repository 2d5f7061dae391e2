"""Steering: what a change of the stream reaches, that it leaves no trace, what it adds or takes, and what is said of it."""

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.causal import steering as pure
from saerl_lightning.causal.answers import Answers, Condition
from saerl_lightning.causal.steering import AblateFeatures, AddDirection, intervened
from saerl_lightning.causal.steering_section import over_controls, steering_section
from saerl_lightning.causal.steering_test import _asked, steering
from saerl_lightning.causal.subject import MeasurementCache, Subject
from saerl_lightning.causal.sums import Sum, draw_sums
from saerl_lightning.errors import InputError
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.policy_decoder import PolicyDecoder
from saerl_lightning.signals.model import ReadModel

MODELS = Path(__file__).parents[2] / "models"
WIDTH, FEATURES, LAYER = 64, 256, 2
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]  # the second is padded on the left


def random_sae(**config):
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    known = SAEMetadata(model_name="Some/Reader", hook_name=f"blocks.{LAYER}.hook_resid_post")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(WIDTH, FEATURES, k=8, metadata=known, **config))
        for parameter in (sae.b_enc, sae.b_dec):
            torch.nn.init.normal_(parameter, std=0.3)
        sae.W_dec.data *= torch.rand(FEATURES, 1) + 0.5  # features of unequal norm
    return sae


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    with warnings.catch_warnings():  # on import
        warnings.filterwarnings("ignore", message="The 'utils' module", category=DeprecationWarning)
        import sae_lens  # noqa: F401
    folder = tmp_path_factory.mktemp("steering")
    build_tiny_policy(str(folder / "reader"), ["What is 1 + 2? 1 + 2 = 3"], hidden_size=WIDTH, layers=4)
    random_sae().save_model(folder / "sae")
    return Subject.load(str(folder / "reader"), str(folder / "sae"), LAYER)


@pytest.fixture
def model(subject):
    return subject.model


def decoded(model, prompts, steps=2):
    """Logits of the prompts' next tokens and of `steps` fixed tokens after them, and what the layer handed on."""
    seen = []
    handle = model.base_model.layers[LAYER + 1].register_forward_pre_hook(
        lambda _m, given: seen.append(given[0].clone())
    )
    try:
        with torch.no_grad():
            decoder = PolicyDecoder(model, prompts, 1, steps)
            logits = [decoder.prefill()]
            logits += [decoder.step(torch.full((len(prompts),), 20 + step)) for step in range(steps)]
    finally:
        handle.remove()
    return torch.stack(logits, 1), seen


def test_every_position_but_the_first_and_padding_is_changed_in_the_prompt_and_after(model):
    added = torch.arange(WIDTH, dtype=torch.float32)
    _, plain = decoded(model, PROMPTS)
    with intervened(model, LAYER, AddDirection(added, 0.5)) as reach:
        steered, changed = decoded(model, PROMPTS)
    moved = changed[0] - plain[0]
    kept = torch.tensor([[True] + [False] * 5, [True] * 4 + [False] * 2])  # position 0; padding and position 0
    assert (moved[kept] == 0).all()
    torch.testing.assert_close(moved[~kept], (0.5 * added).expand(7, WIDTH))
    for step in (1, 2):
        torch.testing.assert_close(changed[step] - plain[step], (0.5 * added).expand(2, 1, WIDTH), atol=1e-4, rtol=1e-4)
    assert reach.positions == 7 + 2 * 2
    for prompt, logits in zip(PROMPTS, steered, strict=True):  # alone, unpadded, a prompt is steered the same
        with intervened(model, LAYER, AddDirection(added, 0.5)):
            torch.testing.assert_close(decoded(model, [prompt])[0][0], logits, atol=1e-4, rtol=1e-4)


def test_leaving_restores_the_model_even_after_an_exception(model):
    before, _ = decoded(model, PROMPTS)
    with intervened(model, LAYER, AddDirection(torch.ones(WIDTH), 9.0)):
        assert not torch.equal(decoded(model, PROMPTS)[0], before)
    assert torch.equal(decoded(model, PROMPTS)[0], before)

    class Fails(pure.Intervention):
        def __call__(self, stream):
            raise ArithmeticError

    with pytest.raises(ArithmeticError), intervened(model, LAYER, Fails()):
        decoded(model, PROMPTS)
    assert torch.equal(decoded(model, PROMPTS)[0], before)
    assert not model.base_model.layers[LAYER]._forward_hooks


def test_fused_weights_are_not_reached_and_the_count_says_so(subject):
    for fused, reached in ((True, False), (False, True)):
        with HFEngine(fused=fused) as engine:
            engine.start(subject.model, subject.tokenizer, 64)
            engine.load_weights(subject.model.state_dict().items(), 0)
            with intervened(subject.model, LAYER, AddDirection(torch.ones(WIDTH), 1.0)) as reach:
                engine.generate(PROMPTS, Sampling(group_size=2, max_tokens=3, seed=0))
            assert bool(reach.positions) is reached


CONFIGS = {
    "plain": {},
    "layer_norm": {"normalize_activations": "layer_norm"},
    "rescaled": {"normalize_activations": "constant_norm_rescale"},
    "decoder_norm": {"rescale_acts_by_decoder_norm": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_ablating_takes_out_what_the_features_add_to_the_reconstruction(subject, config):
    sae = random_sae(**config)
    stream = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    with torch.no_grad():
        codes = sae.encode(stream)
        whole = sae.decode(codes)
        columns = codes.count_nonzero(0).argsort(descending=True)[:20].numpy()
        rest = sae.encode(stream)  # again, for what it remembers of the scale
        rest[:, columns] = 0
        gone = whole - sae.decode(rest)
        changed = AblateFeatures(sae, columns)(stream)
    assert gone.norm(dim=1).max() > 0.1
    torch.testing.assert_close(stream - changed, gone, atol=1e-5, rtol=1e-4)
    if not config:
        torch.testing.assert_close(gone, codes[:, columns] @ sae.W_dec[columns], atol=1e-5, rtol=1e-4)
    never = np.flatnonzero(codes.count_nonzero(0).numpy() == 0)
    assert torch.equal(AblateFeatures(sae, never)(stream), stream)


def test_directions_of_hand_worked_numbers():
    decoder = torch.tensor([[3.0, 0.0], [0.0, 2.0], [7.0, 7.0]])
    direction = pure.probe_direction(np.array([1.0, -2.0]), decoder, np.array([0, 1]))  # 3, -4
    torch.testing.assert_close(direction, torch.tensor([0.6, -0.8]))
    drawn = pure.random_direction(50, 3)
    assert float(drawn.norm()) == pytest.approx(1) and torch.equal(drawn, pure.random_direction(50, 3))
    assert not torch.equal(drawn, pure.random_direction(50, 4))
    with pytest.raises(InputError, match="norm 0"):
        pure.probe_direction(np.array([1.0, -1.0]), decoder, np.array([2, 2]))
    with pytest.raises(InputError, match="1 weights for 2 columns"):
        pure.probe_direction(np.array([1.0]), decoder, np.array([0, 1]))


def test_streams_are_read_without_position_0_and_layers_that_are_not_there_are_refused(model):
    streams = pure.read_streams(model, LAYER, PROMPTS)
    _, plain = decoded(model, PROMPTS)
    torch.testing.assert_close(streams[1], plain[0][1, 4:], atol=1e-5, rtol=1e-4)
    norms = torch.cat([plain[0][0, 1:], plain[0][1, 4:]]).norm(dim=1)
    assert pure.mean_norm(streams) == pytest.approx(float(norms.mean()), rel=1e-5)
    for layer in (-1, 4):
        with (
            pytest.raises(InputError, match=r"layers 0 to 3"),
            intervened(model, layer, AddDirection(torch.ones(WIDTH), 1.0)),
        ):
            pass


def given(subject):
    """A probe and feature rows that fit the SAE."""
    random = np.random.default_rng(0)
    rows = np.where(random.random((30, FEATURES)) < 0.3, random.random((30, FEATURES)), 0.0)
    weights = np.where(random.random(FEATURES) < 0.2, random.standard_normal(FEATURES), 0.0)
    return weights, csr_array(rows), [each.question() for each in draw_sums(3, 2, 1, 0)]


def test_a_steered_study_is_kept_and_read_back(subject, tmp_path, monkeypatch):
    weights, features, questions = given(subject)
    cache = MeasurementCache(tmp_path / "measured")
    section = steering(subject, weights, features, questions, 2, 0, cache)
    assert len(section.rows) == len(list(cache.folder.iterdir())) == 37
    section.write(tmp_path / "section.json")  # refuses NaN
    assert json.loads((tmp_path / "section.json").read_text())["figure"]["data"]
    monkeypatch.setattr(HFEngine, "generate", lambda *_: pytest.fail("measured again"))
    assert steering(subject, weights, features, questions, 2, 0, cache) == section


def test_bad_questions_of_steering_are_refused(subject, tmp_path):
    weights, features, questions = given(subject)
    cache = MeasurementCache(tmp_path)
    with pytest.raises(InputError, match="1 questions"):
        steering(subject, weights, features, questions[:1], 2, 0, cache)
    with pytest.raises(InputError, match="shares are"):
        steering(subject, weights, features, questions, 2, 0, cache, shares=(-0.5, 0.0))
    with pytest.raises(InputError, match="points nowhere"):
        steering(subject, 0 * weights, features, questions, 2, 0, cache)


def told(probe: list[float], controls: list[list[float]], numbered: float = 1.0) -> tuple[list[Answers], str]:
    """A study of one share on four questions, none of which is ever answered wrong without a change."""

    def answers(kind, name, share, right, d, count=8):
        values = np.array(right, dtype=float)
        heard = np.full(4, numbered if share else 1.0)
        return Answers(Condition(kind, name, share, count, [name, share], None), values, heard, np.full(4, d))

    none = answers("nothing", "none", 0.0, [1, 1, 1, 1], 0.0)
    added = [answers("probe", "the probe's direction", 0.25, probe, 2.0)]
    added += [answers("direction", f"random direction {i}", 0.25, own, 0.5) for i, own in enumerate(controls)]
    out = [answers("top out", "top features out", 0.0, [0.5, 1, 1, 1], 0.0)]
    out += [answers("random out", f"random features {i} out", 0.0, [1, 1, 1, 1], 0.0) for i in (1, 2)]
    every = [none, *added, *out]
    section = steering_section(every, samples=8, seed=0, norm=170.0, layer=15)
    assert len(section.rows) == len(every)
    return every, section.text


def test_a_probe_is_held_against_the_mean_of_its_controls_question_by_question():
    # Effects: probe -.5 -.5 -.75 -.75; controls' mean -.25 everywhere, so the difference is -.25 -.25 -.5 -.5.
    every, text = told([0.5, 0.5, 0.25, 0.25], [[0.5, 0.5, 1, 1], [1, 1, 0.5, 0.5]])
    effect, beyond, single = over_controls(every[1:4], every[0])
    assert effect.value == pytest.approx(-0.625) and single == pytest.approx([-0.25, -0.25])
    assert beyond.value == pytest.approx(-0.375)
    half = 3.182446 * 0.1443376 / 2  # Student's t of 3 degrees, sd of the four, root of four
    assert (beyond.low, beyond.high) == pytest.approx((-0.375 - half, -0.375 + half), rel=1e-4)
    assert "0 of 2 controls lower it as much or more" in text and "and by more than each" in text
    assert "moves by +2 sd (controls +0.500 to +0.500)." in text
    assert "an interval that holds 0" in text  # one question of four moved without the top features
    assert "broken" not in text


def test_a_control_that_does_as_much_is_counted_and_no_difference_is_claimed():
    _, text = told([0.5, 0.5, 0.5, 0.75], [[0, 0, 0.25, 0], [1, 1, 1, 0.75]], numbered=0.25)
    assert "1 of 2 controls lower it as much or more" in text and "it is not shown that it lowers" in text
    assert "Under 3 changes the model is broken" in text and "near the floor" not in text
    _, text = told([1, 1, 1, 0.75], [[0, 0, 0, 0.25], [0.25, 0, 0, 0]])
    assert "by less than the average control" in text
    assert "At share 0.250 the controls alone leave less than a quarter of the right answers" in text


def test_answers_are_counted_question_by_question(subject):
    class Scripted:
        def generate(self, ids, sampling):
            assert (len(ids), sampling.group_size, sampling.seed) == (2, 3, 7)
            return SimpleNamespace(texts=[" 5", " 4", " five", "is 2", " 2.", "2"])

    questions = [Sum((2, 3), (1,)).question(), Sum((4, 2), (-1,)).question()]
    asked: Any = _asked
    right, numbered = asked(subject, Scripted(), [[1], [2]], questions, 3, 7, None)
    assert (right, numbered) == ([1 / 3, 2 / 3], [2 / 3, 2 / 3])
    with pytest.raises(RuntimeError, match="changed nothing"):  # an engine that runs no forward of the model
        asked(subject, Scripted(), [[1], [2]], questions, 3, 7, AddDirection(torch.ones(WIDTH), 1.0))


@pytest.mark.real
@pytest.mark.skipif(not (MODELS / "smollm2-135m" / "config.json").is_file(), reason="run `make smollm2` first")
def test_smollm2_answers_the_same_at_strength_0_and_otherwise_at_a_huge_one():
    read = ReadModel(str(MODELS / "smollm2-135m"), device="cpu")
    model, tokenizer = read.load_whole(), read.load_tokenizer()
    asked: Any = tokenizer(["2 + 3 = 5\n1 + 1 =", "2 + 2 = 4\n3 + 4 ="])
    texts = []
    with HFEngine(fused=False) as engine:
        engine.start(model, tokenizer, 256)
        for strength in (None, 0.0, 500.0):
            change = AddDirection(pure.random_direction(576, 0), strength or 0.0)
            with nullcontext() if strength is None else intervened(model, 15, change):
                rollouts = engine.generate(asked["input_ids"], Sampling(group_size=8, max_tokens=3, seed=0))
            texts.append(rollouts.texts)
    assert texts[0] == texts[1] != texts[2]
    right = [
        sum(text.startswith(f" {answer}") for text, answer in zip(own, [2] * 8 + [7] * 8, strict=True)) for own in texts
    ]
    assert right[0] > 8 and right[2] == 0
