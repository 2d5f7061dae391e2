"""The packed forward against padded rows: states, gradients, what it refuses, and what it leaves behind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from saerl_lightning.policy import prefix, prefix_attention
from saerl_lightning.policy.prefix import pack_groups, predicting_states, why_not_packed
from saerl_lightning.policy.prefix_attention import NAME, PackedLayout, attends_packed

WORDS = 97
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": WORDS}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
FAMILIES = {"Llama": {}, "Qwen2": {"use_sliding_window": False}, "Qwen3": {"head_dim": 16}}
# Each group: tokens of its prompt, tokens of each completion.
LAYOUTS = {
    "ragged": [(4, (3, 8, 1, 5)), (7, (2, 2, 6)), (1, (1, 9))],
    "equal": [(5, (4, 4, 4)), (2, (4, 4, 4))],
    "mixed": [(3, (5, 5)), (6, (1, 7)), (2, (4,))],
    "one group": [(6, (2, 7, 7))],
    "group of one": [(3, (5,))],
}


def make(family, **options):
    import transformers

    config = getattr(transformers, f"{family}Config")(**SIZES, **HEADS, initializer_range=0.3, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForCausalLM")(config)


def lay_out(groups, seed=1):
    """Right-padded rows of random tokens; those of a group share their prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows, spans, prompts = [], [], []
    for g, (start, lengths) in enumerate(groups):
        prompt = torch.randint(0, WORDS, (start,), generator=generator)
        rows += [torch.cat([prompt, torch.randint(0, WORDS, (n,), generator=generator)]) for n in lengths]
        spans += [(start, start + n) for n in lengths]
        prompts += [g] * len(lengths)
    tokens = pad_sequence([*rows, torch.zeros(max(map(len, rows)) + 2).long()], batch_first=True)[:-1]
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (start, end) in zip(mask, spans, strict=True):
        row[start:end] = True
    return tokens, mask, torch.tensor(prompts)


def padded_states(model, tokens, mask):
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden[:, :-1][mask[:, 1:]]


def gradients(model, states):
    """The gradient of a fixed random linear functional of the states, by parameter."""
    model.zero_grad()
    (states.float() * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_as_padded(model, rows, tolerance=1e-5):
    tokens, mask, prompts = rows
    expected = padded_states(model, tokens, mask)
    theirs = gradients(model, expected)
    states = predicting_states(model, pack_groups(tokens, mask, prompts))
    torch.testing.assert_close(states, expected, atol=tolerance * 10, rtol=tolerance * 10)
    ours = gradients(model, states)  # behind the forward's context: checkpoints are recomputed here
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) < tolerance * largest, name


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return make(request.param, **FAMILIES[request.param]).train()


@pytest.fixture
def llama():
    return make("Llama").train()


@pytest.mark.parametrize("block", [128, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_and_gradients_are_those_of_padded_rows(family, layout, block, monkeypatch):
    monkeypatch.setattr(prefix_attention, "CPU_BLOCK", block)
    assert_same_as_padded(family, lay_out(LAYOUTS[layout]))


def test_packed_states_use_the_models_own_scale_of_scores():
    assert_same_as_padded(make("Granite", attention_multiplier=0.7), lay_out(LAYOUTS["mixed"]))


def test_the_sampler_and_the_packed_forward_take_turns(llama):
    from saerl_lightning.rollout.policy_decoder import folded

    assert_same_as_padded(llama, lay_out(LAYOUTS["equal"]))
    with folded(llama):
        assert llama.config._attn_implementation == "saerl_folded"
        assert_same_as_padded(llama, lay_out(LAYOUTS["ragged"]))
        assert llama.config._attn_implementation == "saerl_folded"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_recomputed_with_the_packed_attention(llama, reentrant):
    llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
    llama.enable_input_require_grads()
    before = llama.model.layers[0]._gradient_checkpointing_func
    assert_same_as_padded(llama, lay_out(LAYOUTS["ragged"]))
    assert llama.model.layers[0]._gradient_checkpointing_func is before
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_states_hold_with_adapters(llama, checkpointing):
    from peft import LoraConfig, get_peft_model

    if checkpointing:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = get_peft_model(llama, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.enable_input_require_grads()
    assert why_not_packed(adapted, 256) is None  # pyright: ignore[reportArgumentType]  # it forwards to the model it wraps
    assert_same_as_padded(adapted, lay_out(LAYOUTS["mixed"]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_models_own_attention_is_restored(llama, attention):
    llama.set_attn_implementation(attention)
    packed = pack_groups(*lay_out(LAYOUTS["equal"]))
    predicting_states(llama, packed)
    assert llama.config._attn_implementation == llama.model.config._attn_implementation == attention
    with pytest.raises(ZeroDivisionError), attends_packed(llama.model):
        assert llama.config._attn_implementation == NAME
        raise ZeroDivisionError
    assert llama.config._attn_implementation == attention
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    functions = [layer._gradient_checkpointing_func for layer in llama.model.layers]
    with pytest.raises(ZeroDivisionError), attends_packed(llama.model):
        raise ZeroDivisionError
    assert [layer._gradient_checkpointing_func for layer in llama.model.layers] == functions


def test_a_trial_leaves_no_trace(llama):
    llama.model.layers[0].eval()
    before, modes = torch.get_rng_state(), [module.training for module in llama.modules()]
    assert why_not_packed(llama, 10**6) is None
    assert torch.get_rng_state().equal(before)
    assert [module.training for module in llama.modules()] == modes
    assert all(p.grad is None for p in llama.parameters())


def test_a_decoder_whose_packed_states_are_a_little_off_is_not_packed(llama, monkeypatch):
    """A hundredth of a state's length, whatever that length is."""
    monkeypatch.setattr(prefix, "predicting_states", lambda *asked: 1.01 * predicting_states(*asked))
    assert why_not_packed(llama, 10**6) == "LlamaModel differs with packed groups by 0.01 of a state's norm"


def test_packed_states_are_as_near_as_padded_ones_in_bfloat16(llama):
    tokens, mask, prompts = lay_out(LAYOUTS["ragged"])
    packed = pack_groups(tokens, mask, prompts)
    exact = padded_states(llama, tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not_packed(llama, 256) is None
        ways = predicting_states(llama, packed), padded_states(llama, tokens, mask)
    assert why_not_packed(llama, 256) is None
    flat = [torch.cat([g.flatten() for g in gradients(llama, states).values()]) for states in (exact, *ways)]
    ours, theirs = (float((way.detach() - exact.detach()).norm()) for way in ways)
    assert ours < 1.5 * theirs  # as close as bf16's 8 bits let padded rows come
    assert float((flat[1] - flat[0]).norm()) < 1.5 * float((flat[2] - flat[0]).norm())
    assert why_not_packed(llama.bfloat16(), 256) is None


@pytest.mark.parametrize("block", [128, 2])
def test_completions_do_not_see_each_other(llama, block, monkeypatch):
    monkeypatch.setattr(prefix_attention, "CPU_BLOCK", block)
    tokens, mask, prompts = lay_out(LAYOUTS["ragged"])
    owner = mask.nonzero()[:, 0]
    before = predicting_states(llama, pack_groups(tokens, mask, prompts))
    for row in range(len(tokens)):
        other = tokens.clone()
        other[row] = torch.where(mask[row], (tokens[row] + 1) % WORDS, tokens[row])
        after = predicting_states(llama, pack_groups(other, mask, prompts))
        same = (after == before).all(1)
        assert same[owner != row].all()
        first = (owner == row).nonzero()[0]
        assert same[first]  # the first completion token is predicted by the prompt alone
        assert not same[owner == row][1:].any()


GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)), min_size=1, max_size=4
)


@given(GROUPS, st.integers(0, 99))
def test_every_completion_token_is_predicted_from_the_token_before_it(groups, seed):
    tokens, mask, prompts = lay_out(groups, seed)
    packed = pack_groups(tokens, mask, prompts)
    assert packed.tokens.shape[1] == sum(prompt + sum(lengths) for prompt, lengths in groups)
    rows, columns = mask.nonzero().T
    assert packed.tokens[0, packed.predicting].equal(tokens[rows, columns - 1])
    assert packed.positions[0, packed.predicting].equal(columns - 1)
    for group, (prompt, lengths) in zip(packed.groups, groups, strict=True):
        assert (group.prompt, group.lengths) == (prompt, lengths)
        place = group.start + prompt
        assert packed.positions[0, group.start : place].equal(torch.arange(prompt))
        for length in lengths:
            assert packed.positions[0, place : place + length].equal(torch.arange(prompt, prompt + length))
            place += length


def test_packing_by_hand():
    tokens = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 5, 0, 0], [6, 7, 8, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    packed = pack_groups(tokens, mask, torch.tensor([4, 4, 2]))
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3, 4]]
    assert packed.predicting.tolist() == [1, 2, 1, 5, 6, 7, 8]
    with pytest.raises(AssertionError, match=r"start at \[1, 2\]"):
        pack_groups(tokens, mask, torch.tensor([4, 4, 4]))


def test_masks_stay_below_the_square_of_a_long_completion():
    layout = PackedLayout(pack_groups(*lay_out([(9, (1500, 700))])).groups, torch.device("cpu"))
    blocks = layout.groups[0].blocks
    assert max(block.stop - block.start for block in blocks) == prefix_attention.CPU_BLOCK
    assert [block.count for block in blocks] == [2] * 6 + [1] * 6
    assert layout.mask(2, 4, 2, torch.zeros(1)).tolist() == [[0, 0, 0, float("-inf")]] * 2 + [[0, 0, 0, 0]] * 2


def gemma2():
    return make("Gemma2", head_dim=8)


def bloom():
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=WORDS))


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=16, state_size=4, num_hidden_layers=1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: make("Mistral", sliding_window=100), "windows of 100 tokens, sequences have up to 101"),
        (lambda: make("Qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1), "windows of 64"),
        (lambda: make("Mistral", sliding_window=101), None),
        (gemma2, "softcap"),
        (bloom, "can't be replaced"),
        (mamba, "differs with packed groups"),
        (lambda: make("Llama", attention_dropout=0.1), "attention dropout 0.1"),
    ],
)
def test_models_that_need_padded_rows_are_told_apart(model, reason):
    model = model().eval()
    before = model.config._attn_implementation
    found = why_not_packed(model, 101)
    assert found is None if reason is None else reason in found
    assert model.config._attn_implementation == before


def test_a_window_that_nobody_looked_up_is_refused():
    model = make("Mistral", sliding_window=8)
    with pytest.raises(NotImplementedError, match="a window of 8 tokens"):
        predicting_states(model, pack_groups(*lay_out(LAYOUTS["ragged"])))
    assert model.config._attn_implementation == "sdpa"
