"""The memory estimate: bytes worked by hand, and the tensors that a real model, optimiser and cache hold."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from saerl_lightning.policy.decoder_sizes import DecoderSizes
from saerl_lightning.policy.lean_layers import make_lean
from saerl_lightning.policy.memory import EngineMemory, StepSetting, activations, decoding, estimate, head
from saerl_lightning.policy.scoring import Scorer

NUMBERS = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 320,
}
# 2 layers, d 8, 2 query heads and 1 key head of 4, f 16, V 10.
SMALL = DecoderSizes(2, 8, 2, 1, 4, 16, 10, tied=False)
# 2 prompts of 3 tokens, 2 completions of 5 each: 26 packed tokens, of which 20 are scored.
STEP = StepSetting(2, 2, 3, 5, 100)


def sizes_of(config) -> DecoderSizes:
    sizes = DecoderSizes.of(config)
    assert sizes is not None
    return sizes


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**NUMBERS, tie_word_embeddings=True),
        LlamaConfig(**NUMBERS, head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
        Qwen2Config(**NUMBERS, tie_word_embeddings=False),
        Qwen3Config(**NUMBERS, head_dim=24, tie_word_embeddings=True),
        MistralConfig(**NUMBERS, tie_word_embeddings=False),
    ],
    ids=lambda config: config.model_type,
)
def test_parameters_are_those_of_a_model_made_from_the_config(config):
    model = AutoModelForCausalLM.from_config(config)
    assert sizes_of(config).parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(up|down)_proj"])
def test_adapters_are_those_that_peft_adds(targets):
    from peft import LoraConfig, get_peft_model

    config = Qwen2Config(**NUMBERS)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert sizes_of(config).adapters(4, targets) == trained


def test_a_model_that_is_not_llama_like_has_no_estimate():
    from transformers import GPT2Config

    assert DecoderSizes.of(GPT2Config()) is None


def test_parts_are_bytes_worked_by_hand():
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, MLP
    parameters = 2 * (layer + 2 * 8) + 8 + 2 * 10 * 8
    assert SMALL.parameters == parameters == 1352
    # A token: norms' inputs 2 x 8, projections' inputs 2 x 8 + 8 + 16, queries and results 2 x 8, gate and up 2 x 16.
    # Keys: 26 tokens, and prompt and own of each completion, 4 x 8; 2 x 4 numbers each. Once: the last norm's input and
    # the positions' cosines and sines, 8 + 2 x 4 a token. Work: 4 x 16 a token of one layer.
    kept = 4 * (2 * (26 * 104 + 58 * 8) + 26 * 16 + 26 * 64)
    assert activations(SMALL, STEP) == kept == 33_664
    # All 20 x 10 probabilities, three tiles of as many at work, 20 states of 8.
    assert head(SMALL, STEP) == 4 * (200 + 600 + 160)
    engine = decoding(SMALL, STEP, max_rows=256, fused=True, copies_head=True)
    assert engine.weights == 4 * (2 * layer + 80)
    # (2 prompts of 3 and 4 completions of 5) x 2 layers x 2 x 4 numbers; four arrays of 4 x 10 logits.
    assert engine.cache == 4 * (26 * 16 + 160)
    made = estimate(SMALL, STEP, engine, read_model=7, sae=5)
    assert (made.weights, made.gradients, made.optimiser) == (4 * 1352, 4 * 1352, 8 * 1352)
    assert made.sampling == 12 * 1352 + engine.weights + engine.cache
    assert made.updating == 12 * 1352 + kept + head(SMALL, STEP) + 4 * 80  # the head's gradient is the first
    assert made.reading == 12 and made.total == made.updating


def test_two_micro_batches_hold_gradients_beside_half_the_activations():
    engine = EngineMemory()
    whole, half = (estimate(SMALL, replace(STEP, micro_tokens=most), engine) for most in (26, 13))
    assert 2 * half.activations == whole.activations
    assert half.updating == 12 * 1352 + half.activations + half.head + 4 * 1352 + 4 * 80


def test_an_engine_that_stays_awake_is_held_in_the_update():
    asleep, awake = (estimate(SMALL, STEP, EngineMemory(100, 30, rests, rests)) for rests in (True, False))
    assert awake.updating == asleep.updating + 130 and awake.sampling == asleep.sampling


def test_settings_change_the_parts_that_they_concern():
    engine = EngineMemory()
    full = estimate(SMALL, STEP, engine)
    adapted = estimate(SMALL, replace(STEP, lora=(2, "all-linear"), weight_bytes=2), engine)
    adapters = SMALL.adapters(2, "all-linear")
    assert adapters == 2 * 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    assert adapted.weights == 2 * 1352 + 4 * adapters and adapted.optimiser == 8 * adapters
    assert estimate(SMALL, replace(STEP, reference=True), engine).reference == full.weights
    assert estimate(SMALL, replace(STEP, copies=True), engine).gradients == 2 * full.gradients
    assert estimate(SMALL, replace(STEP, states=1), engine).optimiser == full.optimiser // 2
    checkpointed = estimate(SMALL, replace(STEP, checkpointing=True), engine).activations
    assert checkpointed == 4 * (2 * 26 * 8 + (26 * 104 + 58 * 8) + 26 * 16 + 26 * 64)
    assert estimate(SMALL, replace(STEP, shared_prefix=False), engine).activations > full.activations
    assert estimate(SMALL, replace(STEP, lean_layers=False), engine).activations > full.activations


SHARDED = replace(STEP, shards=4)


def test_shards_hold_a_fourth_each_beside_two_gathered_layers_and_both_ends():
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    made = estimate(SMALL, SHARDED, EngineMemory(100, 30))
    gathered = 4 * (2 * layer + 2 * 80)  # embedding and head are two weights
    assert made.weights == 1352 + gathered and made.gradients == 1352 and made.optimiser == 2 * 1352
    assert made.sampling == 3 * 1352 + 130 + 4 * 80  # one whole tensor on its way to the engine
    assert made.updating == 3 * 1352 + gathered + made.activations + made.head + 4 * 80
    tied = estimate(replace(SMALL, tied=True), SHARDED, EngineMemory())
    assert tied.weights == (1352 - 80) + gathered - 4 * 80
    assert estimate(SMALL, replace(SHARDED, reference=True), EngineMemory()).reference == 1352


@pytest.fixture
def four_ranks():
    """The first of four processes, of which the others are only pretended."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield distributed.device_mesh.init_device_mesh("cpu", (4,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
def test_shards_of_a_real_model_have_the_bytes_that_are_counted(four_ranks, tied):
    from saerl_lightning.policy.sharding import shard

    config = Qwen2Config(**NUMBERS, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    shard(model, four_ranks)
    held = sum(weight.to_local().numel() * 4 for weight in model.parameters())
    gathered = estimate(sizes_of(config), SHARDED, EngineMemory()).weights - sizes_of(config).parameters
    for layer in model.model.layers[:2]:
        layer.unshard()
    model.unshard()
    assert held == pytest.approx(sizes_of(config).parameters, rel=0.01)
    whole = sum(weight.numel() * 4 for weight in model.parameters() if not hasattr(weight, "to_local"))
    assert whole == pytest.approx(gathered, rel=0.02)  # norms and biases are not counted


def test_shards_gather_layers_in_the_type_that_products_are_computed_in():
    half, full = (estimate(SMALL, replace(SHARDED, mixed=mixed), EngineMemory()).weights for mixed in (True, False))
    assert full - 1352 == 2 * (half - 1352)


def test_whole_gradients_stand_beside_shards_only_where_micro_batches_are_added():
    cut = replace(SHARDED, micro_tokens=13)
    each, last = (estimate(SMALL, replace(cut, whole_gradients=whole), EngineMemory()) for whole in (False, True))
    assert last.gradients - each.gradients == 4 * 1352 and last.updating - each.updating == 4 * 1352
    one = replace(SHARDED, whole_gradients=True)
    assert estimate(SMALL, one, EngineMemory()).gradients == 1352


def saved_bytes(model, tokens, mask, prompts) -> tuple[int, int]:
    """Bytes of distinct storages that a forward keeps for its backward pass: of the layers, and of the head."""
    kept: dict[int, int] = {}
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = Scorer(1.0, shared_prefix=True, tiled_head=True)(model, tokens, mask, prompts)
    held = sum(kept.values())
    del out
    return held, len(kept)


def test_activations_and_kept_probabilities_are_those_that_autograd_holds():
    config = LlamaConfig(**NUMBERS | {"hidden_size": 128, "intermediate_size": 256}, attn_implementation="sdpa")
    model = make_model(config)
    prompt, own, group = 40, 50, 4
    tokens = torch.randint(0, 320, (2 * group, prompt + own))
    tokens[:, :prompt] = tokens[::group][:, :prompt].repeat_interleave(group, 0)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, prompt:] = True
    held, _ = saved_bytes(model, tokens, mask, torch.arange(2).repeat_interleave(group))
    step = StepSetting(2, group, prompt, own, 10_000)
    sizes = sizes_of(config)
    layers = activations(sizes, step) - 4 * step.tokens * sizes.inner * 4
    probabilities = 4 * step.scored * (sizes.vocabulary + sizes.stream)
    assert layers + probabilities == pytest.approx(held, rel=0.03)


def make_model(config):
    model = AutoModelForCausalLM.from_config(config)
    assert make_lean(model) > 0
    return model.train()


def test_the_engines_cache_is_that_of_its_tensors():
    from saerl_lightning.policy.weights import named_weights
    from saerl_lightning.rollout.fused.decoder import FusedDecoder, fuse_weights

    config = Qwen2Config(**NUMBERS, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        weights = fuse_weights(model, named_weights(model), compare_logits=False)
        decoder = FusedDecoder(model, weights, [[1, 2, 3], [4, 5, 6]], 4, 5)
        decoder.prefill()
    held = sum(cache.prompt.nbytes + cache.own.nbytes for cache in decoder.caches)
    sizes, step = sizes_of(config), StepSetting(2, 4, 3, 5, 100)
    assert sizes.cache(2 * 3 + 8 * 5, 4) == held
    assert decoding(sizes, step, 256, fused=True, copies_head=True).cache == held + 4 * 8 * 320 * 4
    # Rows that do not fit at once decode one group after the other.
    assert decoding(sizes, step, 4, fused=True, copies_head=True).cache == held // 2 + 4 * 4 * 320 * 4


def test_the_line_names_total_phases_and_parts():
    sizes = DecoderSizes(30, 576, 9, 3, 64, 1536, 49152, tied=True)
    said = str(estimate(sizes, StepSetting(2, 8, 64, 64, 10**6), EngineMemory(10**9, 2 * 10**7)))
    assert said.startswith("memory: at most about 3.") and "GB a rank (updating 3." in said
    assert "sampling 2.63), libraries not counted" in said
    assert "weights 0.54, gradients 0.54, optimiser 1.08" in said and "engine 1.00, kv cache 0.02" in said
    assert "reference" not in said and "sae" not in said


def test_what_libraries_hold_is_counted_beside_each_phase():
    made = replace(estimate(SMALL, STEP, EngineMemory(), read_model=7), libraries=10**6)
    assert made.total == made.updating + 10**6
    assert "libraries included" in str(made) and "updating 1.0" in str(made) and "libraries 1.00" in str(made)
