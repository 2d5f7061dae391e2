"""The simulated step: each part worked by hand with simple rates, and what must hold of look-ahead and colocation."""

from dataclasses import replace

import numpy as np
import pytest
import scale
from scale import MODELS, Rates, Work

# A decode step takes a second, whatever it reads.
STEPS = Rates(hbm_tb=1e9, tflops=1e9, step_ms=1000)
SMALL = MODELS["Qwen2.5-0.5B"]


def test_a_replica_decodes_continuously():
    """Two slots: rows of 1 and 1 run, then the one of 3: four steps; with three slots three."""
    rows = np.array([3, 1, 1])
    assert scale._decoded(SMALL, Work(), STEPS, 1, rows, 2) == pytest.approx(4, abs=1e-3)
    assert scale._decoded(SMALL, Work(), STEPS, 1, rows, 3) == pytest.approx(3, abs=1e-3)


def test_a_decode_step_reads_weights_and_cache_or_multiplies():
    rates = Rates(tflops=1e9, hbm_tb=1, read_share=1, step_ms=0)
    # 2 layers' numbers (K and V) of 24 layers, 2 heads of 64, two bytes each: 12,288 bytes a token.
    assert scale.cache_bytes(SMALL) == 12_288
    read = 2 * SMALL.parameters + 10 * 1000 * 12_288
    assert scale.decode_seconds(SMALL, rates, 2, 10, 1000) == pytest.approx(read / 2e12)
    bound = replace(rates, tflops=1, prefill_share=0.5)
    assert scale.decode_seconds(SMALL, bound, 1, 10, 0) == pytest.approx(2 * SMALL.parameters * 10 / 0.5e12)


@pytest.mark.parametrize("model", ["Qwen2.5-1.5B", "Qwen2.5-7B"])
def test_look_ahead_gains_on_alternating_at_most_twice_and_nobody_beats_the_ideal(model):
    sizes, work, rates = MODELS[model], Work(), Rates()
    one = scale.colocated(sizes, work, rates, 16)
    two, three = (scale.split(sizes, work, rates, 16, ahead) for ahead in (False, True))
    assert one and two and three
    assert three.seconds < two.seconds < 2 * three.seconds
    assert scale.ideal(sizes, work, rates, 16) < min(one.seconds, two.seconds, three.seconds)
    assert two.seconds == pytest.approx(two.sample + two.train + two.between)
    assert three.seconds == pytest.approx(max(three.sample, three.train) + three.between)


def test_large_models_need_shards_and_many_gpus():
    rates, large = Rates(), MODELS["Llama-3.1-70B"]
    assert scale.shards(SMALL, rates, 0.9) == 1 and scale.shards(large, rates, 0.9) == 4  # 282 GB in 288
    assert scale.colocated(large, Work(), rates, 8) is None and scale.colocated(large, Work(), rates, 64) is not None


def test_the_page_prints_every_rate_with_its_source():
    page = scale.page(Work(), replace(Rates(), mfu=0.33), ("Qwen2.5-0.5B",), (8,))
    assert "- mfu = 0.33: share of tflops" in page and "SIMULATED" in page
    assert set(scale.SOURCES) == set(vars(Rates()))
    assert page.count("| Qwen2.5-0.5B | 8 |") == 1


@pytest.mark.parametrize(("model", "billions"), [("Qwen2.5-32B", 32.8), ("Llama-3.1-70B", 70.6)])
def test_sizes_give_the_published_number_of_parameters(model, billions):
    assert MODELS[model].parameters / 1e9 == pytest.approx(billions, abs=0.1)
