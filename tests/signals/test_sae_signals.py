"""SAE and hidden signals against sae-lens and the model by hand, and the fingerprints they are kept under."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import BLOCK, BLOCKS, WHOLE, digest_file, digest_folder
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import ReadModel, encode
from saerl_lightning.signals.sae import FrozenRandomSAESignals, SAESignals
from saerl_lightning.signals.sae_source import SAESource

SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m"


def ask(*contents: str) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", text, "") for i, text in enumerate(contents)]


def pool(count: int = 12) -> list[Prompt]:
    return ask(*(f"What is {i} plus {i * i}? {'Tell me why. ' * (i % 4)}" for i in range(count)))


def by_hand(model: ReadModel, prompts: list[Prompt], sae=None) -> list[np.ndarray]:
    """Rows of each prompt's tokens without the first, from the whole model's hidden states, one prompt at a time."""
    layer, _, _ = model.config()
    whole, tokenizer = model.load_whole(), model.load_tokenizer()
    rows = []
    for ids in encode(prompts, tokenizer):
        with torch.inference_mode():
            hidden = whole(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, 1:]
            rows.append((hidden if sae is None else sae.encode(hidden)).numpy())
    return rows


POOLED = {
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "last": lambda rows: rows[-1],
    "binary": lambda rows: (rows > 0).any(0),
}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("budget", [60, 1024])
def test_sae_rows_are_the_saes_codes_pooled(tiny, pooling, budget):
    expected = [POOLED[pooling](rows) for rows in by_hand(tiny.model, pool(), tiny.sae.load(tiny.model))]
    rows = SAESignals(tiny.model, tiny.sae, pooling, token_budget=budget).features(pool())
    assert isinstance(rows, csr_array) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.toarray(), np.stack(expected), rtol=1e-4, atol=1e-5)


def test_only_the_strongest_features_are_kept(tiny):
    whole = SAESignals(tiny.model, tiny.sae, top=256).features(pool()).toarray()
    cut = SAESignals(tiny.model, tiny.sae, top=5).features(pool())
    assert (np.diff(cut.indptr) == 5).all()
    np.testing.assert_array_equal(np.sort(cut.toarray())[:, -5:], np.sort(whole)[:, -5:])


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_hidden_rows_are_the_hidden_states_pooled(tiny, pooling):
    expected = [POOLED[pooling](rows) for rows in by_hand(tiny.model, pool())]
    rows = HiddenSignals(tiny.model, pooling, token_budget=60).features(pool())
    np.testing.assert_allclose(rows, np.stack(expected), rtol=1e-4, atol=1e-5)


def test_principal_components_keep_the_distances(tiny):
    rows = HiddenSignals(tiny.model).features(pool()).astype(np.float64)
    signals = HiddenSignals(tiny.model, components=11)  # twelve centred points span eleven dimensions
    components = signals.features(pool())
    assert components.shape == (12, 11)
    apart = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (rows, components)]
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-4, atol=1e-4)
    assert (np.diff(components.var(0)) <= 1e-9).all()  # the largest variance first
    assert len(list(signals.stream(pool()))) == 1  # rows depend on each other: all or nothing
    with pytest.raises(InputError, match="components is 13, but 12 prompts of width 64 have at most 12"):
        HiddenSignals(tiny.model, components=13).features(pool())


@pytest.mark.parametrize("cls", [SAESignals, HiddenSignals])
def test_the_stream_holds_every_prompt_once_in_several_parts(tiny, cls):
    more = {"sae": tiny.sae} if cls is SAESignals else {}
    found = list(cls(tiny.model, token_budget=60, **more).stream(pool()))
    assert len(found) > 3
    assert sorted(np.concatenate([positions for positions, _ in found])) == list(range(12))


def test_no_prompts_give_no_rows(tiny):
    assert SAESignals(tiny.model, tiny.sae).features([]).shape == (0, 256)
    assert HiddenSignals(tiny.model).features([]).shape == (0, 64)


def test_a_long_prompt_is_read_to_its_limit(tiny):
    start = "What is " * 40
    same = SAESignals(tiny.model, tiny.sae, max_tokens=20).features(ask(start + "one?", start + "two plus two?"))
    assert np.array_equal(same.toarray()[0], same.toarray()[1]) and same.nnz
    assert SAESignals(tiny.model, tiny.sae).fingerprint(pool()) != SAESignals(
        tiny.model, tiny.sae, max_tokens=20
    ).fingerprint(pool())


def test_nan_names_the_prompt(tiny, tmp_path, monkeypatch):
    """A model that breaks on one token, as by an overflow: only prompts with it are named."""
    monkeypatch.setattr("saerl_lightning.whole_weights.require_finite_weights", lambda weights, where: None)
    shutil.copytree(tiny.model.path, tmp_path / "reader")
    model = ReadModel(str(tmp_path / "reader"), device="cpu")
    whole, tokenizer = model.load_whole(), model.load_tokenizer()
    (token,) = set(tokenizer("Z")["input_ids"])
    with torch.no_grad():
        whole.get_input_embeddings().weight[token] = float("nan")
    whole.save_pretrained(model.path)
    for signals in (SAESignals(model, tiny.sae), HiddenSignals(model)):
        with pytest.raises(InputError, match=r"'p2' are NaN or infinite \(1 of the \d prompts"):
            signals.features(ask("What?", "Why?", "Z?", "One?"))


def test_the_frozen_control_takes_frozen_decoders_only(tiny):
    ours = FrozenRandomSAESignals(tiny.model, tiny.frozen).features(pool(3))
    np.testing.assert_array_equal(ours.toarray(), SAESignals(tiny.model, tiny.frozen).features(pool(3)).toarray())
    with pytest.raises(InputError, match=r"frozen random decoder.*sae/frozen_random\.yaml"):
        FrozenRandomSAESignals(tiny.model, tiny.sae).features(pool(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "sum"}, "pooling is 'sum'; write one of mean, max, last, binary"),
        ({"top": 0}, "SAESignals.top is 0"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"max_tokens": 1}, "max_tokens is 1; write a whole number from 2"),
    ],
)
def test_bad_arguments_are_refused(tiny, arguments, message):
    with pytest.raises(InputError, match=message):
        SAESignals(tiny.model, tiny.sae, **arguments)


def test_the_fingerprint_follows_contents_not_places(tiny, tmp_path):
    before = SAESignals(tiny.model, tiny.sae).fingerprint(pool())
    assert SAESignals(replace(tiny.model, layer=2), tiny.sae, token_budget=7).fingerprint(pool()) == before
    shutil.copytree(tiny.model.path, tmp_path / "reader")
    shutil.copytree(tiny.sae.path, tmp_path / "sae")
    moved = SAESignals(ReadModel(str(tmp_path / "reader"), device="cpu"), SAESource(str(tmp_path / "sae")))
    assert moved.fingerprint(pool()) == before
    for file in (tmp_path / "reader" / "model.safetensors", tmp_path / "sae" / "sae_weights.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        changed = moved.fingerprint(pool())
        assert changed != before
        before = changed
    assert SAESignals(replace(tiny.model, dtype="bfloat16"), tiny.sae).fingerprint(pool()) != before


def test_large_files_are_sampled_from_first_to_last_block(tmp_path):
    file = tmp_path / "large.bin"
    with file.open("wb") as content:
        content.truncate(WHOLE + 12345)  # sparse on disk
    whole = digest_file(file)
    for place in (0, WHOLE + 12344, (WHOLE + 12345 - BLOCK) // (BLOCKS - 1)):
        with file.open("r+b") as content:
            content.seek(place)
            content.write(b"x")
        changed = digest_file(file)
        assert changed != whole
        whole = changed
    small = tmp_path / "small.txt"
    small.write_text("a")
    assert digest_folder(tmp_path, [".txt"]) == digest_folder(tmp_path, [".txt"]) != digest_folder(tmp_path, [".bin"])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs models/smollm2-135m: `make smollm2`")
def test_a_real_model_reads_in_a_trie_what_it_reads_alone():
    model = ReadModel(str(SMOLLM2), device="cpu")
    expected = np.stack([rows.mean(0) for rows in by_hand(model, pool(6))])
    rows = HiddenSignals(model).features(pool(6))
    assert np.abs(rows - expected).max() < 1e-4 * np.abs(expected).max()
