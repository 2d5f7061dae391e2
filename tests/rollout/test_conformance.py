"""What every rollout engine promises. Each engine is started once for the whole module: vLLM takes its time."""

import random

import numpy as np
import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.completion import end_ids
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.scripted import ScriptedEngine
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.vllm import VLLMEngine

ENGINES = {
    "hf": HFEngine,
    "hf-unfused": lambda: HFEngine(fused=False),
    "vllm": lambda: VLLMEngine(kv_cache_gb=0.25, max_num_seqs=32),
    "server": ServerEngine,
    "scripted": lambda: ScriptedEngine(["The answer is 19.", "pear", "0123456789" * 6, "fig, apple."]),
}
# vLLM's own start-up warns of its own dependencies; nothing of that is ours to fix.
VLLM = pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.filterwarnings("ignore")])
SERVER = pytest.param("server", marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")])
MAX_LEN = 256


def over(shared):
    return ServerEngine([shared.running().server.url])


def global_rng():
    return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.fixture(scope="module", params=["hf", "hf-unfused", VLLM, SERVER, "scripted"])
def started(request, load_tiny):
    """Yields (engine, model, tokenizer); a start that draws from the global random streams fails here."""
    model, tokenizer = load_tiny()
    serving = request.param == "server"
    model.train()
    before, threads = global_rng(), torch.get_num_threads()
    with over(request.getfixturevalue("shared_server")) if serving else ENGINES[request.param]() as engine:
        engine.start(model, tokenizer, MAX_LEN)
        assert global_rng() == before
        torch.set_num_threads(threads + 1)
        assert torch.get_num_threads() == threads + 1
        torch.set_num_threads(threads)
        engine.load_weights(model.state_dict().items(), version=0)
        assert getattr(engine, "fallback", None) is None
        yield engine, model, tokenizer
    engine.close()  # a second time


@pytest.fixture
def sampler(started):
    """The engines that sample: a script has no distribution to be greedy, seeded or stopped in."""
    if isinstance(started[0], ScriptedEngine):
        pytest.skip("a script is not sampled")
    return started


@pytest.fixture(scope="module")
def prompts(started):
    """Prompts of unequal length; one is long enough to fill a block of vLLM's prefix cache."""
    tokenizer = started[2]
    texts = ["What is 12 + 7?", "Sort these words: fig, pear.", "Count the letters in banana. " * 18]
    chats = [[{"role": "user", "content": text}] for text in texts]
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=True)["input_ids"] for c in chats]
    assert len({len(i) for i in ids}) == 3
    assert max(map(len, ids)) > 128
    return ids


def completions(rollouts):
    return [row[m].tolist() for row, m in zip(rollouts.tokens, rollouts.mask, strict=True)]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_the_policys_own(started, prompts, temperature):
    engine, model, _ = started
    rollouts = engine.generate(prompts, Sampling(group_size=3, temperature=temperature, max_tokens=24, seed=3))
    with torch.no_grad():
        policy, _ = score(model, rollouts.tokens, rollouts.mask, temperature)
    assert mismatch(policy, rollouts.logprobs, rollouts.mask)[1] < 1e-3
    assert (rollouts.logprobs[~rollouts.mask] == 0).all()


def test_groups_are_neighbours_behind_their_prompt(started, prompts):
    engine, _, _ = started
    rollouts = engine.generate(prompts, Sampling(group_size=2, max_tokens=8))
    assert rollouts.group_size == 2
    assert len(rollouts.tokens) == 2 * len(prompts)
    for r, row in enumerate(rollouts.tokens):
        prompt = prompts[r // 2]
        assert row[: len(prompt)].tolist() == prompt
        columns = rollouts.mask[r].nonzero().squeeze(1).tolist()
        assert columns == list(range(len(prompt), len(prompt) + len(columns)))


def test_special_tokens_but_ends_are_read(started, prompts):
    """The random policy writes `<|im_start|>` now and then; here it is a tag like any other."""
    engine, model, tokenizer = started
    ends, tag = set(end_ids(model, tokenizer)), tokenizer.convert_tokens_to_ids("<|im_start|>")
    rollouts = engine.generate(prompts, Sampling(group_size=8, max_tokens=48))
    written = [[i for i in completion if i not in ends] for completion in completions(rollouts)]
    assert rollouts.texts == tokenizer.batch_decode(written, clean_up_tokenization_spaces=False)
    assert any(tag in completion for completion in written) or isinstance(engine, ScriptedEngine)


def test_a_row_ends_at_the_end_of_text_or_is_truncated(started, prompts):
    engine, model, tokenizer = started
    ends = set(end_ids(model, tokenizer))
    rollouts = engine.generate(prompts, Sampling(group_size=8, max_tokens=48))
    for completion, truncated in zip(completions(rollouts), rollouts.truncated.tolist(), strict=True):
        assert not ends & set(completion[:-1])
        assert truncated == (completion[-1] not in ends)
        assert len(completion) == 48 if truncated else len(completion) <= 48
    assert 0 < rollouts.truncated.sum() < len(rollouts.truncated)


def test_a_share_of_a_batch_is_sampled_as_in_the_whole(started, prompts):
    """The second of two processes has the prompts at the odd places."""
    engine, _, _ = started
    four = [*prompts, prompts[0]]
    sampling = Sampling(group_size=2, max_tokens=12, seed=5)
    whole = completions(engine.generate(four, sampling))
    share = completions(engine.generate([four[1], four[3]], sampling.placed([1, 3], seed=5)))
    assert share == whole[2:4] + whole[6:8]
    assert whole[:2] != whole[6:8]  # one prompt at two places


def test_greedy_equals_transformers_greedy(sampler, prompts):
    engine, model, _ = sampler
    rollouts = engine.generate(prompts, Sampling(group_size=2, temperature=0, max_tokens=16))
    model.eval()
    for r, completion in enumerate(completions(rollouts)):
        ids = torch.tensor([prompts[r // 2]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        assert completion == out[0, ids.shape[1] :].tolist()
    with torch.no_grad():
        policy, _ = score(model, rollouts.tokens, rollouts.mask, 1.0)  # greedy is reported at temperature 1
    assert mismatch(policy, rollouts.logprobs, rollouts.mask)[1] < 1e-3


def test_seeds_reproduce_and_differ(sampler, prompts):
    engine, _, _ = sampler
    first, again, other = (
        completions(engine.generate(prompts, Sampling(group_size=4, max_tokens=12, seed=seed))) for seed in (5, 5, 6)
    )
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert len(set(map(tuple, first))) == len(first)  # within the group, and across prompts


def test_global_random_streams_are_left_alone(started, prompts):
    engine, _, _ = started
    before = global_rng()
    engine.generate(prompts, Sampling(group_size=2, max_tokens=4))
    assert global_rng()[1:] == before[1:]  # Python's stream is drawn from by beartype, which checks records under test


@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_p": 0.05}])
def test_limited_support_is_sampled_and_reported(sampler, prompts, limits):
    engine, model, _ = sampler
    rollouts = engine.generate(prompts, Sampling(group_size=8, max_tokens=6, **limits))
    with torch.no_grad():
        logits = model(rollouts.tokens).logits[:, :-1].float()
    mass = logits.softmax(-1)
    ordered, order = mass.sort(-1, descending=True)
    kept = order.argsort(-1) < limits.get("top_k", 10**9)
    kept &= ((ordered.cumsum(-1) - ordered) < limits.get("top_p", 1.0)).gather(-1, order.argsort(-1))
    limited = (mass * kept / (mass * kept).sum(-1, keepdim=True)).log()
    expected = limited.gather(-1, rollouts.tokens[:, 1:, None]).squeeze(-1)
    inside = rollouts.mask[:, 1:]
    torch.testing.assert_close(rollouts.logprobs[:, 1:][inside], expected[inside], atol=1e-3, rtol=0)


def test_a_stop_text_ends_the_row_that_completes_it(sampler, prompts):
    engine, _, tokenizer = sampler
    free = engine.generate(prompts[:1], Sampling(group_size=1, temperature=0, max_tokens=32))
    ids = completions(free)[0]
    letters = [c for c in free.texts[0] if c.isascii() and c.isprintable()]
    stop = letters[len(letters) // 2]
    shortest = next(n for n in range(1, 33) if stop in tokenizer.decode(ids[:n]))
    stopped = engine.generate(prompts[:1], Sampling(group_size=1, temperature=0, max_tokens=32, stop=(stop,)))
    assert completions(stopped)[0] == ids[:shortest]
    assert not stopped.truncated.any()


def test_new_weights_take_effect_everywhere(started, prompts):
    """All weights change, the tied head among them, after the prompts have filled the prefix cache."""
    engine, model, _ = started
    sampling = Sampling(group_size=2, max_tokens=8, seed=9)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine.load_weights(model.state_dict().items(), version=6)
    before = engine.generate(prompts, sampling)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    if isinstance(engine, VLLMEngine | ServerEngine):  # the others are the policy itself
        stale = engine.generate(prompts, sampling)
        assert completions(stale) == completions(before)
    engine.load_weights(model.state_dict().items(), version=7)
    after = engine.generate(prompts, sampling)
    with torch.no_grad():
        policy, _ = score(model, after.tokens, after.mask)
        model.load_state_dict(old)
        outdated, _ = score(model, after.tokens, after.mask)
    engine.load_weights(model.state_dict().items(), version=8)
    assert mismatch(policy, after.logprobs, after.mask)[1] < 1e-3
    assert mismatch(outdated, after.logprobs, after.mask)[0] > 0.1
    assert (before.weight_version == 6).all()
    assert (after.weight_version == 7).all()


def test_what_does_not_fit_is_refused(started, prompts):
    engine, _, _ = started
    with pytest.raises(InputError, match="exceed the engine's 256"):
        engine.generate(prompts, Sampling(max_tokens=MAX_LEN))
    with pytest.raises(InputError, match="no tokens"):
        engine.generate([prompts[0], []], Sampling())
    with pytest.raises(InputError, match="no prompts"):
        engine.generate([], Sampling())


def test_an_engine_is_started_before_it_samples(load_tiny):
    for make in ENGINES.values():
        engine = make()
        engine.close()
        with pytest.raises(RuntimeError, match="before start"):
            engine.generate([[5]], Sampling())


def test_a_missing_vllm_is_told(load_tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'saerl-lightning\[vllm\]'"):
        VLLMEngine().start(*load_tiny(), MAX_LEN)
