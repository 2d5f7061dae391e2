"""The trie: every prompt is on a path, every distinct prefix is one node, and a node sees what is above it and itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.signals.prefix_tree import batches, build, common_prefix, spans

# Few tokens, so that prefixes are shared; empty lists, equal lists and prefixes of each other come up by themselves.
prompts = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=12)


def prefixes(lists: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(tokens[:end]) for tokens in lists for end in range(1, len(tokens) + 1)}


def test_three_prompts_by_hand():
    trie = build([[7, 8, 9], [7, 5], [7, 8]])
    # sorted: 7 5 | 7 8 | 7 8 9, so the nodes are 7, 75, 78, 789
    assert trie.tokens.tolist() == [7, 5, 8, 9]
    assert trie.depth.tolist() == [0, 1, 1, 2]
    assert trie.parent.tolist() == [-1, 0, 0, 2]
    assert [path.tolist() for path in trie.paths] == [[0, 2, 3], [0, 1], [0, 2]]
    first, second = spans(trie, width=2)
    assert first.path.tolist() == [] and first.mask.tolist() == [[True, False], [True, True]]
    assert second.path.tolist() == [0] and second.mask.tolist() == [[True, True, False], [True, True, True]]


@given(prompts)
def test_every_prompt_is_recovered_from_its_path_and_every_prefix_is_one_node(lists):
    trie = build(lists)
    assert [trie.tokens[path].tolist() for path in trie.paths] == lists
    assert [trie.depth[path].tolist() for path in trie.paths] == [list(range(len(tokens))) for tokens in lists]
    assert len(trie) == len(prefixes(lists))
    for path in trie.paths:
        assert trie.parent[path].tolist() == [-1, *path[:-1]][: len(path)]


@given(prompts, st.integers(1, 6))
def test_spans_cover_all_nodes_and_show_each_its_ancestors_and_itself(lists, width):
    trie = build(lists)
    covered = [node for span in spans(trie, width) for node in range(span.start, span.stop)]
    assert covered == list(range(len(trie)))
    for span in spans(trie, width):
        keys = np.concatenate([span.path, np.arange(span.start, span.stop)])
        for row, node in zip(span.mask, range(span.start, span.stop), strict=True):
            assert keys[row].tolist() == [*trie.ancestors(node), node]


@given(prompts, st.integers(1, 12))
def test_batches_hold_every_prompt_once_within_the_budget(lists, budget):
    parts = batches(lists, budget)
    assert sorted(index for part in parts for index in part) == list(range(len(lists)))
    for part in parts:
        assert len(build([lists[i] for i in part])) <= budget or len(part) == 1


@given(prompts)
def test_one_batch_of_any_size_computes_no_prefix_twice(lists):
    assert sum(len(build([lists[i] for i in part])) for part in batches(lists, 10**6)) == len(prefixes(lists))


def test_common_prefix():
    assert [common_prefix(*pair) for pair in (([], [1]), ([1, 2], [1, 3]), ([1], [1, 2]), ([4], [5]))] == [0, 1, 1, 0]
