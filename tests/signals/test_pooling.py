"""Pooling, on numbers worked by hand and against dense arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

from saerl_lightning.signals.pooling import DENSE, SPARSE, strongest

# Five tokens (nodes), four features. Two prompts share the nodes 0 and 1; a third has one token only.
CODES = np.array(
    [
        [9, 9, 9, 9],  # the first token: never pooled
        [1, 0, 4, 0],
        [3, 0, 0, 0],
        [0, 2, 2, 0],
        [5, 0, 0, 0],
    ],
    dtype=np.float32,
)
PATHS = [np.array([0, 1, 2, 3]), np.array([0, 1, 4]), np.array([0])]
BY_HAND = {
    "mean": [[4 / 3, 2 / 3, 2, 0], [3, 0, 2, 0], [0, 0, 0, 0]],
    "max": [[3, 2, 4, 0], [5, 0, 4, 0], [0, 0, 0, 0]],
    "last": [[0, 2, 2, 0], [5, 0, 0, 0], [0, 0, 0, 0]],
    "binary": [[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]],
}


@pytest.mark.parametrize("how", SPARSE)
def test_shared_nodes_count_for_each_prompt_and_the_first_token_for_none(how):
    rows = SPARSE[how](csr_array(CODES), PATHS, 4)
    assert isinstance(rows, csr_array) and rows.dtype == np.float32
    assert rows.toarray() == pytest.approx(np.array(BY_HAND[how]))
    assert (rows.data != 0).all() and rows.has_sorted_indices


@pytest.mark.parametrize("how", DENSE)
def test_dense_rows_are_pooled_alike(how):
    assert DENSE[how](CODES, PATHS) == pytest.approx(np.array(BY_HAND[how]))


def test_the_strongest_are_kept_and_ties_go_to_the_lower_column():
    rows = csr_array(np.array([[1, 3, 2, 3], [2, 2, 2, 2], [0, 0, 0, 1]], dtype=np.float32))
    assert strongest(rows, 2).toarray().tolist() == [[0, 3, 0, 3], [2, 2, 0, 0], [0, 0, 0, 1]]
    assert strongest(rows, 1).toarray().tolist() == [[0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]]


def test_binary_keeps_what_is_active_most_often():
    codes = csr_array(np.array([[1, 1, 1], [9, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=np.float32))
    path = [np.arange(4)]
    assert SPARSE["binary"](codes, path, 1).toarray().tolist() == [[0, 0, 1]]
    assert SPARSE["binary"](codes, path, 2).toarray().tolist() == [[1, 0, 1]]  # a tie of columns 0 and 1


@pytest.mark.parametrize("how", SPARSE)
def test_nothing_active_gives_empty_rows(how):
    rows = SPARSE[how](csr_array((5, 4), dtype=np.float32), PATHS, 4)
    assert rows.shape == (3, 4) and rows.nnz == 0
    assert SPARSE[how](csr_array(CODES), [], 4).shape == (0, 4)


@given(
    hnp.arrays(np.float32, (6, 5), elements=st.sampled_from([0, 0, 0, 1, 2, 3.5])),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(1, 5),
)
def test_sparse_pooling_equals_dense_pooling_of_the_same_codes(codes, lists, top):
    paths = [np.array(tokens) for tokens in lists]
    for how in DENSE:
        dense = DENSE[how](codes, paths)
        assert SPARSE[how](csr_array(codes), paths, 5).toarray() == pytest.approx(dense, rel=1e-6)
        for row, kept in zip(dense, SPARSE[how](csr_array(codes), paths, top).toarray(), strict=True):
            order = np.argsort(-row, kind="stable")[:top]
            assert np.flatnonzero(kept).tolist() == sorted(int(i) for i in order if row[i])
            assert kept[order] == pytest.approx(row[order], rel=1e-6)


def test_nan_is_not_cut():
    codes = CODES.copy()
    codes[2, 0] = np.nan
    for how in ("mean", "max"):
        assert np.isnan(SPARSE[how](csr_array(codes), PATHS, 1).toarray()[0, 0])
