# SPDX-License-Identifier: Apache-2.0
"""Arrays given to `forward`: what is a whole number in range passes as it is, nothing else does."""

import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config.model import AlbertConfig
from albert_jax.inference.id_arrays import model_inputs
from albert_jax.utils.errors import UserError

CONFIG = AlbertConfig(vocab_size=100, max_position_embeddings=8, type_vocab_size=2)
IDS = [[2, 13, 3]]
NAMES = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: rows,
        lambda rows: tuple(map(tuple, rows)),
        lambda rows: [np.array(row) for row in rows],
        lambda rows: np.array(rows, np.uint8),
        lambda rows: np.array(rows, np.int64),
        lambda rows: np.array(rows, np.uint64),
        lambda rows: np.array(rows, ">i4"),
        lambda rows: np.array(rows, np.float32),
        lambda rows: np.array(rows, np.float16),
        lambda rows: jnp.array(rows, jnp.int8),
        lambda rows: jnp.array(rows, jnp.bfloat16),
    ],
)
def test_whole_numbers_of_any_kind_and_width_pass(make) -> None:
    given = (make(IDS), make([[1, 1, 0]]), make([[0, 1, 1]]), make([[2, 0]]))
    for name, array, wanted in zip(
        NAMES,
        model_inputs(CONFIG, *given),
        (IDS, [[1, 1, 0]], [[0, 1, 1]], [[2, 0]]),
        strict=True,
    ):
        assert array.dtype == np.int32, name
        assert array.tolist() == wanted, name


def test_mask_and_segments_may_be_true_and_false_and_have_defaults() -> None:
    _, mask, segments, positions = model_inputs(CONFIG, IDS)
    assert (mask.tolist(), segments.tolist(), positions) == ([[1, 1, 1]], [[0, 0, 0]], None)
    flags = np.array([[True, True, False]])
    _, mask, segments, _ = model_inputs(CONFIG, IDS, flags, ~flags)
    assert (mask.tolist(), segments.tolist()) == ([[1, 1, 0]], [[0, 0, 1]])


def test_no_rows_and_no_positions_are_arrays_of_none() -> None:
    none = np.zeros((0, 5)), np.zeros((0, 2))
    ids, mask, _, positions = model_inputs(CONFIG, none[0], masked_lm_positions=none[1])
    assert ids.shape == mask.shape == (0, 5)
    assert positions.shape == (0, 2)
    assert model_inputs(CONFIG, IDS, masked_lm_positions=[[]])[3].shape == (1, 0)


WRONG_VALUES = [
    (5.9, "has 5.9; its values must be whole numbers"),
    (float("nan"), "has nan; its values must be whole numbers"),
    (float("inf"), "has inf; its values must be whole numbers"),
    ("a", "is of dtype <U.*; its values must be whole numbers"),
    (b"a", "is of dtype .S.*; its values must be whole numbers"),
    (None, "has None; its values must be whole numbers"),
    (1j, "is of dtype complex128; its values must be whole numbers"),
    (np.timedelta64(1), "is of dtype timedelta64; its values must be whole numbers"),
    (2**70, f"has {2**70}; its values must be whole numbers of 64 bits"),
    (-1, "go from -1 to 0; .* 0 to "),
    (2**40, f"go from 0 to {2**40}; .* 0 to "),  # not what is left of it in 32 bits
    (-(2**32) + 1, "go from -4294967295 to 0; .* 0 to "),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("value", "told"), WRONG_VALUES)
def test_a_value_that_is_no_whole_number_in_range_is_named(name, value, told) -> None:
    given = {"input_ids": IDS, name: [[0, value, 0]]}
    with pytest.raises(UserError, match=f"^{name} {told}"):
        model_inputs(CONFIG, **given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_ids": [[1, 100]]}, "input_ids go from 1 to 100; the vocabulary has 0 to 99"),
        ({"input_mask": [[1, 5, 0]]}, "input_mask go from 0 to 5; a mask has 0 to 1"),
        ({"segment_ids": [[0, 2, 0]]}, "segment_ids go from 0 to 2; the model has segments 0 to 1"),
        ({"masked_lm_positions": [[3]]}, "masked_lm_positions go from 3 to 3; rows of 3 ids have"),
        ({"input_ids": [[True]]}, "input_ids is of dtype bool; its values must be whole numbers"),
        ({"masked_lm_positions": [[True]]}, "masked_lm_positions is of dtype bool"),
        ({"input_ids": [1, 2]}, r"input_ids has shape \(2,\); give \[batch, sequence\]"),
        ({"input_ids": [[[1]]]}, r"input_ids has shape \(1, 1, 1\)"),
        ({"input_ids": []}, r"input_ids has shape \(0,\)"),
        ({"input_ids": [[]]}, r"input_ids has shape \(1, 0\); a row needs at least one id"),
        ({"input_ids": [[1], [1, 2]]}, "input_ids has rows of different lengths; pad them to one"),
        ({"input_ids": [[1] * 9]}, "rows of 9 tokens, more than the model's 8"),
        ({"input_ids": 5}, "input_ids 5 must be rows of whole numbers"),
        ({"input_ids": None}, "input_ids None must be rows of whole numbers"),
        ({"input_ids": "text"}, "input_ids 'text' must be rows of whole numbers"),
        ({"input_ids": {"a": 1}}, "input_ids {'a': 1} must be rows of whole numbers"),
        ({"input_ids": iter(IDS)}, "input_ids <list_iterat.* must be rows of whole numbers"),
        ({"input_mask": [[1, 1]]}, r"input_mask has shape \(1, 2\); it must be .* \(1, 3\)"),
        ({"segment_ids": [[0, 0, 0]] * 2}, r"segment_ids has shape \(2, 3\); it must be"),
        ({"masked_lm_positions": [1]}, r"has shape \(1,\); give \[batch, positions\]"),
        ({"masked_lm_positions": [[0], [1]]}, "has 2 rows and input_ids 1"),
    ],
)
def test_shapes_kinds_and_ranges_are_told(given, told) -> None:
    with pytest.raises(UserError, match=told):
        model_inputs(CONFIG, **({"input_ids": IDS} | given))
