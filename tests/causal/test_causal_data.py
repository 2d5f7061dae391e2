"""The data side of the causal tests: the sums, the pure parts by hand, and all on a tiny model whose answers are played."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from saerl_lightning.causal.changes import change_agreement, common_words, tokens_of, top_words, with_note
from saerl_lightning.causal.edits import edited
from saerl_lightning.causal.feature_zeroing import zero_out
from saerl_lightning.causal.fitting import fit_probes, fitting_sums
from saerl_lightning.causal.run import causal
from saerl_lightning.causal.subject import MeasurementCache, Subject, measure
from saerl_lightning.causal.sums import (
    Question,
    Sum,
    bigger_numbers,
    draw_sums,
    is_right,
    one_more_term,
    other_numbers,
)
from saerl_lightning.data.probe_fits import LinearFit
from saerl_lightning.data.scores import kendall
from saerl_lightning.errors import InputError
from saerl_lightning.study.report.section import Section


def test_a_sum_is_written_and_asked():
    each = Sum((7, 7, 2), (1, -1))
    assert (each.expression, each.answer) == ("7 + 7 - 2", 12)
    assert each.question() == Question("What is 7 + 7 - 2?", "7 + 7 - 2 =", 12)
    with pytest.raises(InputError, match="signs"):
        Sum((7, 7), (2,))


@pytest.mark.parametrize(
    ("completion", "right"),
    [("14", True), (" 14.", True), ("  14\n", True), ("14, because", True)]
    + [(text, False) for text in ("140", "14.5", "14,000", "-14", "x 14", "\n14", "", "1 4")],
)
def test_an_answer_is_its_first_integer(completion, right):
    assert is_right(Question("", "", 14), completion) is right


@given(st.integers(1, 80), st.integers(2, 4), st.integers(1, 3), st.integers(0, 99))
def test_drawn_sums_are_what_was_asked_for(count, terms, digits, seed):
    drawn = draw_sums(count, terms, digits, seed)
    assert len(set(drawn)) == len(drawn) == count
    assert all(each.answer >= 0 and len(each.numbers) == terms for each in drawn)
    assert {len(str(n)) for each in drawn for n in each.numbers} == {digits}
    assert drawn == draw_sums(count, terms, digits, seed)


def test_sums_repeat_only_where_there_are_no_more():
    drawn = draw_sums(200, 2, 1, 0)
    assert len(drawn) == 200
    assert len(set(drawn)) == 81 + 45  # a + b, and a - b that is not negative


@given(st.integers(1, 60), st.integers(2, 3), st.integers(1, 2), st.integers(0, 99))
def test_an_edited_sum_differs_only_in_what_the_edit_names(count, terms, digits, seed):
    for each in draw_sums(count, terms, digits, seed):
        bigger, longer, other = bigger_numbers(each, seed), one_more_term(each, seed), other_numbers(each, seed)
        assert [n % 10**digits for n in bigger.numbers] == list(each.numbers)
        assert all(10**digits <= n < 10 ** (digits + 1) for n in bigger.numbers)
        assert longer.expression.startswith(each.expression + " ")
        assert bigger.signs == other.signs == each.signs
        assert other != each
        assert len(other.expression) == len(each.expression)
        assert min(bigger.answer, longer.answer, other.answer) >= 0


def test_no_fitting_sum_is_asked_in_a_test():
    sums = draw_sums(50, 2, 1, 0) + draw_sums(50, 2, 2, 0)
    tested = [q for edit in edited(sums, 0).values() for q in edit] + [each.question() for each in sums]
    fitted = fitting_sums(400, tested, 0)
    assert len({q.opening for q in fitted}) == len(fitted) > 300
    assert not {q.opening for q in fitted} & {q.opening for q in tested}


def test_words_and_their_tokens():
    assert common_words(["The cat, the Dog; cat \\frac note", "dog in a cat"], 2) == ["cat", "dog"]
    noted = with_note(Question("What is 1 + 1?", "1 + 1 =", 2), ["apple", "cat", "pie"])
    assert noted.text == "What is 1 + 1? (Note: the words apple, cat and pie do not matter.)"
    pieces = ["an app", "lep", "ie (", " app", "le", ",", " apples"]
    assert tokens_of(pieces, "apple").tolist() == [3, 4]  # not in "applepie", not in "apples"


def test_top_words_are_those_that_excite():
    activations = csr_array(np.array([[0.0, 2, 0], [0, 3, 0], [1, 0, 0], [0, 1, 0]]))
    assert top_words(activations, ["a", "b", "c", "d"], np.array([1, 0, 2]), 2) == {1: ["b", "a"], 0: ["c"], 2: []}


def test_edits_of_one_question_are_no_independent_observations():
    random = np.random.default_rng(0)
    measured, noise = random.normal(size=(1, 30)), random.normal(size=(1, 30))
    once = change_agreement({"a": measured + noise, "b": noise}, measured)
    thrice = change_agreement(
        {"a": np.repeat(measured + noise, 3, 0), "b": np.repeat(noise, 3, 0)}, np.repeat(measured, 3, 0)
    )
    for name in ("a", "b", "a - b"):
        assert thrice[name].value == pytest.approx(once[name].value)
        assert thrice[name].low == pytest.approx(once[name].low)
    assert once["a - b"].value == pytest.approx(once["a"].value - once["b"].value)
    assert change_agreement({"a": measured**3}, measured)["a"].low == pytest.approx(1)


def test_kendalls_tau_of_an_order():
    assert kendall(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)  # one pair of six turned
    assert kendall(np.array([1.0, 2]), np.array([5.0, 5])) == 0


def test_zeroing_takes_the_order_away_where_the_weights_are():
    """Column 0 carries the label; others are noise as active. A twin of column 0 stands in once it is gone."""
    random = np.random.default_rng(0)
    signal = random.normal(size=80)
    noise = random.normal(size=(80, 14))
    rows, features = np.arange(60), np.column_stack([signal, noise])

    def fit(z, y):
        return LinearFit(np.linalg.lstsq(z, y, rcond=None)[0], 0.0)

    def only_first(z, y):
        return LinearFit(np.eye(z.shape[1])[0] * (z[:, 0].std() > 0), 0.0)

    first = only_first(features, signal)  # it has one feature: 2 is left out
    [alone] = zero_out(features, rows, signal[rows], first, only_first, (1, 2), 0)
    assert (alone.top, alone.weighted, alone.refitted) == (0.0, 0.0, 0.0)
    assert alone.random.tolist() == pytest.approx([1] * 10)
    assert (alone.spearman, alone.random_spearman) == (0.0, pytest.approx(1))
    twin = np.column_stack([features, 0.5 * signal])
    [again] = zero_out(twin, rows, signal[rows], fit(twin[rows], signal[rows]), fit, (1,), 0)
    assert again.refitted == pytest.approx(1)
    assert again.spearman == pytest.approx(1)
    assert again.top < 1 or again.random.min() < 1  # least squares shares the weight between the twins


def test_a_section_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match="1 cells for 2 columns"):
        Section("a", "b", ["c", "d"], [["e"]])
    with pytest.raises(ValueError, match="JSON"):
        Section("a", "b", [], [], {"data": [float("nan")]}).write(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
    Section("a", "b", ["c"], [["d"]]).write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "title": "a",
        "text": "b",
        "columns": ["c"],
        "rows": [["d"]],
    }


def test_what_was_measured_is_not_measured_again(tmp_path):
    cache = MeasurementCache(tmp_path)
    assert cache.rates({"seed": 0}, lambda: np.array([0.25, 1.0])).tolist() == [0.25, 1.0]
    assert cache.rates({"seed": 0}, lambda: pytest.fail("asked again")).tolist() == [0.25, 1.0]
    assert cache.rates({"seed": 1}, lambda: np.zeros(1)).tolist() == [0.0]
    for path in tmp_path.iterdir():
        path.write_text("{")
    with pytest.raises(InputError, match="delete it"):
        cache.rates({"seed": 0}, lambda: np.zeros(2))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of four layers and a random SAE of its layer 2."""
    with warnings.catch_warnings():  # on import
        warnings.filterwarnings("ignore", message="The 'utils' module", category=DeprecationWarning)
        import torch
        from sae_lens import TopKSAE, TopKSAEConfig
        from sae_lens.saes.sae import SAEMetadata

    from saerl_lightning.assets.tiny import build_tiny_policy

    folder = tmp_path_factory.mktemp("causal")
    corpus = [
        "What is one plus two? Tell me, please, which word of this sentence would matter, and which would not."
    ] * 9
    build_tiny_policy(str(folder / "model"), corpus, hidden_size=64, layers=4)
    config = TopKSAEConfig(64, 128, k=8, metadata=SAEMetadata(model_name="model", hook_name="blocks.2.hook_resid_post"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = TopKSAE(config)
        torch.nn.init.normal_(sae.b_enc, std=0.02)
        sae.save_model(folder / "sae")
    return str(folder / "model"), str(folder / "sae")


def test_a_subject_answers_by_seed_and_hands_every_answer_to_its_question(tiny):
    subject = Subject.load(tiny[0], tiny[1], None)
    questions = [each.question() for each in draw_sums(5, 2, 1, 0)]
    for ids, question in zip(subject.ids(questions), questions, strict=True):
        chat = f"<|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\n"
        assert subject.tokenizer.decode(ids) == chat + question.opening
    # What the random model says is nearly never a number; the right one is whatever it said, played back by `is_right`.
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "saerl_lightning.causal.subject.is_right", lambda q, text: said.append((q, text)) or len(text) % 2
        )
        rates = subject.pass_rates(questions, 4, seed=3)
        again = subject.pass_rates(questions, 4, seed=3)
        subject.pass_rates(questions, 4, seed=4)
    assert said[:20] == said[20:40] != said[40:]
    assert rates.tolist() == again.tolist()
    assert [q for q, _ in said[:20]] == [q for q in questions for _ in range(4)]
    assert subject.features(questions).shape == (5, 128)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tests": ["zeroing", "magic"]}, "no causal test is called 'magic'"),
        ({"tests": []}, "no test is asked for"),
        ({"samples": 1}, "samples is 1; write a whole number from 2"),
        ({"questions": 500}, "questions is 500; write a whole number from 4 to 100"),
        ({"prompts": "nowhere.jsonl"}, "does not exist"),
        ({"sae": "nowhere"}, "no SAE folder 'nowhere'"),
        ({"model": "./nowhere"}, "no model could be read"),
    ],
)
def test_bad_input_is_refused_at_the_door(tiny, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        causal(str(tmp_path / "study"), **{"model": tiny[0], "sae": tiny[1]} | flags)
    assert not (tmp_path / "study").exists()


def played(subject, questions, samples, seed, bar=None):
    """A model that gets worse with the length of the sum, whatever else the text says, and flips coins."""
    chance = [1 / (1 + np.exp((len(q.opening) - 9) / 2)) for q in questions]
    return np.random.default_rng(seed).binomial(samples, chance) / samples


def test_a_model_that_can_do_no_sum_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "pass_rates", lambda _, asked, *__, **___: np.zeros(len(asked)))
    with pytest.raises(InputError, match="the difficulty of all 40 fitting sums is 1"):
        fit_probes(Subject.load(tiny[0], tiny[1], None), 40, [], 0, MeasurementCache(tmp_path))


@pytest.mark.slow
def test_three_tests_from_the_verb_to_the_report(tiny, tmp_path, monkeypatch):
    from saerl_lightning.study.report.gather import read_sections

    monkeypatch.setattr(Subject, "pass_rates", played)
    monkeypatch.setattr("saerl_lightning.causal.zeroing.ZEROED", (1, 2))
    settings = {"tests": ["injection", "edits", "zeroing"], "questions": 20, "samples": 16, "fitted": 80}
    causal(str(tmp_path), *tiny, **settings)
    sections = {path.stem: json.loads(path.read_text()) for path in sorted((tmp_path / "causal").glob("*.json"))}
    assert list(sections) == ["1-injection", "2-edits", "3-zeroing"]
    assert [panel.title for panel in read_sections(tmp_path)] == [each["title"] for each in sections.values()]
    injected = {row[0]: row[1:] for row in sections["1-injection"]["rows"]}
    assert injected["random words"][3].startswith("+0.00")  # the same numbers, the same luck: nothing was measured
    assert not injected["random words"][2].startswith("+0.00")  # but the length probe takes the note for something
    assert injected["reworded"][5].startswith("Please compute ")
    edits = {row[0]: row[1:] for row in sections["2-edits"]["rows"]}
    assert float(edits["one more term"][3].split()[0]) > float(edits["bigger numbers"][3].split()[0]) > 0
    assert edits["reworded"][3].startswith("+0.00")
    assert edits["other numbers"][3].startswith("+0.00")
    assert float(edits["Spearman over all edits"][2].split()[0]) > 0.5  # length is what the played model suffers from
    assert [row[0] for row in sections["3-zeroing"]["rows"]][:2] == ["1", "2"]
    assert injected["features that raise d"][4].endswith(" of 8")

    monkeypatch.setattr(Subject, "pass_rates", lambda *_, **__: pytest.fail("asked again"))
    before = (tmp_path / "causal/2-edits.json").read_bytes()
    causal(str(tmp_path), *tiny, **settings | {"tests": ["edits"]})
    assert (tmp_path / "causal/2-edits.json").read_bytes() == before
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        causal(str(tmp_path), *tiny, **settings | {"seed": 1})


def test_measuring_goes_on_where_it_was_killed(tiny, tmp_path, monkeypatch):
    subject, cache = Subject.load(tiny[0], tiny[1], None), MeasurementCache(tmp_path)
    questions, asked = [each.question() for each in draw_sums(70, 2, 2, 0)], []

    def killed(subject, part, samples, seed, bar=None):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((part, seed))
        return played(subject, part, samples, seed)

    monkeypatch.setattr(Subject, "pass_rates", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(subject, questions, 4, 0, cache, "sums")
    asked.clear()
    assert len(measure(subject, questions, 4, 0, cache, "sums")) == 70
    assert [len(part) for part, _ in asked] == [70 - 64]


def test_zeroing_learns_from_labelled_prompts(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("saerl_lightning.causal.zeroing.ZEROED", (1,))
    lines = [{"prompt": q.text, "answer": "1", "difficulty": len(q.text)} for q in fitting_sums(80, [], 0)]
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(map(json.dumps, lines[:-5] + [line | {"difficulty": None} for line in lines[-5:]]))
    )
    causal("study", *tiny, tests=["zeroing"], prompts="prompts.jsonl")
    text = json.loads((tmp_path / "study/causal/3-zeroing.json").read_text())["text"]
    assert "label 'difficulty' of 75 prompts" in text
    assert "orders 80;" in text
    with pytest.raises(InputError, match="labels present: difficulty"):
        causal("study", *tiny, tests=["zeroing"], prompts="prompts.jsonl", label="quality")
