# SPDX-License-Identifier: Apache-2.0
"""Inference against the original's numbers, against itself without batches, and against
transformers' pipeline."""

import io
import itertools
import json
import math
import pickle
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import albert_jax
from albert_jax.cli import main as cli
from albert_jax.config.model import ComputeConfig
from albert_jax.data.bucketing import kept_of_pair, make_row, padded_length, plan_batches
from albert_jax.data.special_pieces import ALBERT_IDS, CLS_ID, MASK_ID, SEP_ID
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference import api as inference
from albert_jax.inference import functions
from albert_jax.inference.api import Albert, load
from albert_jax.models.albert import AlbertForPretraining
from albert_jax.utils.errors import UserError
from tests.helpers import reference
from tests.helpers.golden import CHECKPOINTS, arrays, as_tf, original_model
from tests.helpers.models import noisy_model, noisy_params, tiny_albert, worded_albert
from tests.helpers.paths import VOCABULARY

FORWARD = {"atol": 2e-5, "rtol": 0}  # as test_model: two float32 implementations differ by 6e-6
# Other batch shapes sum in another order; a padding token that counted would show at 1e-2.
PADDED = {"atol": 1e-5, "rtol": 0}

WORDS = [
    "return",
    "the",
    "length",
    "of",
    "a",
    "list",
    "or",
    "of",
    "the",
    "string",
    "it",
    "was",
    "given",
]
TEXTS = [
    " ".join((WORDS * 3)[start : start + count])
    for start, count in enumerate((3, 24, 1, 9, 2, 5, 6, 4, 2))
]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
MASKED = [f"{text} [MASK]." for text in TEXTS]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(VOCABULARY)


@pytest.fixture(scope="module")
def albert(tokenizer):
    return Albert(
        worded_albert(),
        noisy_params(worded_albert()),
        tokenizer,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The same model as a model directory."""
    return noisy_model(tmp_path_factory.mktemp("inference") / "model")


def golden_inputs(expected, count=3):
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    return functions.Inputs(*[expected[name].astype(np.int32) for name in names[:count]])


# ----------------------------------------------------------------------------- against the original


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_encode_gives_each_layer_of_the_original(name):
    config, params = original_model(name)
    expected = arrays(f"{name}/forward")
    inputs = golden_inputs(expected)
    encode = jax.jit(
        partial(functions.encode, AlbertForPretraining(config)), static_argnames=("layer", "pool")
    )
    blocks = config.num_hidden_layers * config.inner_group_num
    names = ["embedding_hidden_mapping_output", *(f"layer_{i:02}" for i in range(blocks))]
    for layer in (0, 1, blocks):
        wanted = expected[names[layer]] * inputs[1][..., None]
        sequence, pooled = encode(params, inputs, layer=layer)
        np.testing.assert_allclose(sequence, wanted, err_msg=names[layer], **FORWARD)
        np.testing.assert_allclose(pooled, expected["pooled_output"], **FORWARD)
    _, cls = encode(params, inputs, layer=1, pool="cls")
    _, mean = encode(params, inputs, layer=1, pool="mean")
    first = expected["layer_00"]
    means = [row[: mask.sum()].mean(0) for row, mask in zip(first, inputs[1], strict=True)]
    np.testing.assert_allclose(cls, first[:, 0], **FORWARD)
    np.testing.assert_allclose(mean, means, **FORWARD)


def test_sentence_order_and_filled_masks_are_those_of_the_original():
    config, params = original_model()
    expected = arrays("tiny/forward")
    model = AlbertForPretraining(config)
    inputs = golden_inputs(expected, 4)
    found = jax.jit(partial(functions.sentence_order, model))(params, inputs)
    odds = np.exp(expected["sop_logits"].astype(np.float64))
    np.testing.assert_allclose(found, odds[:, 0] / odds.sum(1), **FORWARD)

    fill_mask = jax.jit(partial(functions.fill_mask, model, top_k=3))
    scores, tokens = fill_mask(params, inputs)
    variables = as_tf(params, config)
    _, layers, _ = reference.forward(variables, config, *inputs[:3])
    odds = np.exp(reference.masked_lm_logits(variables, layers[-1], inputs[3]))
    probs = odds / odds.sum(-1, keepdims=True)
    np.testing.assert_array_equal(tokens, np.argsort(-probs)[..., :3])
    np.testing.assert_allclose(scores, -np.sort(-probs)[..., :3], **FORWARD)


# ----------------------------------------------------------------------- batches change no answers


def alone(albert, text):
    """forward's output for one text at its own length, with the logits of its first [MASK]."""
    ids = [CLS_ID, *albert.tokenizer.encode(text, parse_special=True).ids, SEP_ID]
    position = ids.index(MASK_ID) if MASK_ID in ids else 0
    return albert.forward([ids], masked_lm_positions=[[position]])


@pytest.mark.parametrize("layer", [-1, 1])
def test_encode_gives_the_texts_vectors_in_order_whatever_they_are_batched_with(albert, layer):
    encoded = albert.encode(TEXTS, layer=layer)
    assert encoded.sequence.shape == (*encoded.mask.shape, 16)
    assert encoded.mask.shape == (len(TEXTS), encoded.mask.sum(1).max())
    vectors = zip(TEXTS[:3], encoded.sequence, encoded.pooled, encoded.mask, strict=False)
    for text, sequence, pooled, mask in vectors:
        output = alone(albert, text)
        count = output.sequence.shape[1]
        np.testing.assert_allclose(
            sequence[:count], output.layers[layer if layer < 0 else layer - 1, 0], **PADDED
        )
        np.testing.assert_allclose(pooled, output.pooled[0], **PADDED)
        assert mask.tolist() == [1] * count + [0] * (len(mask) - count)
        assert not sequence[count:].any()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pooled_vectors_are_those_of_the_sequence(albert, pool):
    whole, pooled = albert.encode(TEXTS), albert.encode(TEXTS, pool=pool)
    assert pooled.sequence is None
    means = whole.sequence.sum(1) / whole.mask.sum(1, keepdims=True)
    wanted = {"cls": whole.sequence[:, 0], "mean": means}[pool]
    np.testing.assert_allclose(pooled.pooled, wanted, **PADDED)


def test_a_list_is_filled_as_its_texts_one_by_one(albert):
    texts = [*MASKED, "the [MASK] of [MASK] lists [MASK]"]
    assert texts_of(albert.fill_mask(texts)) == [texts_of(albert.fill_mask(t)) for t in texts]
    for text in MASKED[:3]:
        probs = softmax_alone(albert, text)
        for answer in albert.fill_mask(text):
            assert answer["score"] == pytest.approx(probs[answer["token"]], abs=1e-5)


def texts_of(answers):
    """Nested answers without their scores, which are compared to a tolerance."""
    if isinstance(answers, list):
        return [texts_of(answer) for answer in answers]
    return (answers["token"], answers["token_str"], answers["sequence"])


def softmax_alone(albert, text):
    odds = np.exp(alone(albert, text).masked_lm_logits[0, 0].astype(np.float64))
    return odds / odds.sum()


def test_score_order_of_lists_is_that_of_each_pair(albert):
    firsts, seconds = zip(*PAIRS, strict=True)
    scores = albert.score_order(firsts, seconds)
    for (a, b), score in zip(PAIRS[:2], scores, strict=False):
        assert albert.score_order(a, b) == pytest.approx(score, abs=1e-5)
        first, second = (albert.tokenizer.encode(text).ids for text in (a, b))
        ids = [CLS_ID, *first, SEP_ID, *second, SEP_ID]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        logits = albert.forward([ids], segment_ids=[segments]).sentence_order_logits[0]
        assert score == pytest.approx(1 / (1 + math.exp(logits[1] - logits[0])), abs=1e-5)


@pytest.mark.slow
def test_a_stream_of_all_lengths_compiles_a_handful_of_programs(tokenizer):
    config = tiny_albert(vocab_size=8000, num_hidden_layers=1, max_position_embeddings=512)
    albert = Albert(config, noisy_params(config), tokenizer)
    texts = [" ".join(["the"] * n) for n in range(1, 510, 9)]
    for text in texts:
        albert.fill_mask(f"{text} [MASK]")
    assert albert._fill_mask._cache_size() == 9  # 16, 24, 32, 48, … 512 tokens
    albert.fill_mask([f"{text} [MASK]" for text in texts * 2])
    assert albert._fill_mask._cache_size() <= 18


def test_no_texts_give_no_answers(albert):
    assert albert.fill_mask([]) == []
    assert albert.encode([]).sequence.shape == (0, 0, 16)
    assert albert.score_order([], []).shape == (0,)


@given(
    st.lists(st.integers(1, 100), max_size=300),
    st.sampled_from([100, 128, 512]),
    st.sampled_from([32, 1024, 16384]),
)
def test_batches_hold_every_row_once_in_few_shapes(lengths, longest, tokens):
    batches = plan_batches(lengths, longest=longest, tokens=tokens)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        longest_row = max(lengths[row] for row in batch.rows)
        assert batch.length == padded_length(longest_row, longest)
        assert longest_row <= batch.length < max(2 * longest_row, 17)
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= tokens
    assert len({(len(b.rows), b.length) for b in batches}) <= len({b.length for b in batches}) + 2


def test_rows_share_a_batch_only_where_it_is_hardly_padded():
    plan = partial(plan_batches, longest=512, tokens=1024)
    unlike = [60, 50, 40, 30, 20, 20, 20, 10]
    assert [len(batch.rows) for batch in plan(unlike)] == [8]
    apart = plan(unlike, padding=0.1)
    assert [batch.length for batch in apart] == [padded_length(n, 512) for n in unlike]
    assert [len(batch.rows) for batch in plan([30] * 40, padding=0.1)] == [32, 8]


# -------------------------------------------------------------------------------- what can be asked


def test_several_masks_have_a_list_each_and_keep_the_others(albert):
    first, second = albert.fill_mask("the [MASK] of [MASK] lists", top_k=9)
    assert len(first) == len(second) == 9
    assert first[0]["sequence"].endswith(" of[MASK] lists[SEP]")
    assert [a["score"] for a in first] == sorted((a["score"] for a in first), reverse=True)


def test_attention_of_a_text_is_of_its_pieces_alone(albert):
    pieces, attention = albert.attention("the [MASK] list")
    assert pieces[0] == "[CLS]"
    assert "[MASK]" in pieces
    assert pieces[-1] == "[SEP]"
    config, size = albert.config, len(pieces)
    assert attention.shape == (
        config.num_hidden_layers * config.inner_group_num,
        config.num_attention_heads,
        size,
        size,
    )
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert albert.encode("the [MASK] list", parse_special=True).mask.shape == (1, size)
    assert albert.encode("the [MASK] list").mask.shape[1] > size


def test_special_tokens_in_a_text_are_read_as_asked_in_every_mode(albert):
    text = "the [MASK] list"
    for mode in ("google", "hf"):
        tokenizer = Tokenizer.load(VOCABULARY, mode=mode)
        found = Albert(albert.config, albert.params, tokenizer)
        for parse in (None, False, True):
            ids = tokenizer.encode(text, add_special_tokens=True, parse_special=parse).ids
            shape = found.encode(text, parse_special=parse).mask.shape
            assert shape == (1, len(ids)), (mode, parse)


def test_a_word_that_the_vocabulary_does_not_know_is_no_target(albert, monkeypatch):
    """As in a vocabulary of BERT's, which makes one piece of such a word."""
    unknown = SimpleNamespace(ids=[albert.tokenizer.special.unk])
    monkeypatch.setattr(type(albert.tokenizer), "encode", lambda *_: unknown)
    with pytest.raises(UserError, match="must be a piece of the vocabulary, and '☃' is none"):
        albert._target_ids(["☃"])


def test_targets_have_their_probabilities_among_all_pieces(albert):
    answers = albert.fill_mask(MASKED[0], targets=["list", "string", "the", "the"], top_k=5)
    assert {a["token_str"] for a in answers} == {"list", "string", "the"}
    probs = softmax_alone(albert, MASKED[0])
    assert [a["score"] for a in answers] == pytest.approx(
        sorted((probs[a["token"]] for a in answers), reverse=True), abs=1e-6
    )


def test_depth_runs_the_shared_layer_another_number_of_times(directory):
    deep = load(directory, depth=5)
    assert deep.config.num_hidden_layers == 5
    shallow = load(directory, depth=2).encode(TEXTS[0])
    np.testing.assert_allclose(shallow.sequence, deep.encode(TEXTS[0], layer=2).sequence, **PADDED)


@pytest.mark.parametrize(
    "command", ["fill-mask mini [MASK]", "encode mini a", "export-serving mini"]
)
def test_a_depth_without_end_is_refused_with_what_a_depth_is(command, tmp_path, capsys):
    dest = [str(tmp_path / "dest")] if command.startswith("export") else []
    assert cli.main([*command.split(), *dest, "--depth", "3000000"]) == 2
    assert capsys.readouterr().err == (
        "albert-jax: --depth 3000000 must be 1 to 1,000: it is how often the shared layer runs for "
        "each text, 4 times if it is left out\n"
    )


@pytest.mark.parametrize("depth", [0, -1, 1001])
def test_a_depth_out_of_range_has_one_range(directory, depth):
    with pytest.raises(UserError, match=rf"depth {depth} must be 1 to 1,000: it is how often"):
        load(directory, depth=depth)


def test_vectors_that_no_memory_holds_are_one_sentence(directory, monkeypatch):
    def zeros(shape, dtype, own=np.zeros):
        if len(shape) == 3:
            raise MemoryError
        return own(shape, dtype)

    albert = load(directory)
    monkeypatch.setattr("albert_jax.inference.api.np.zeros", zeros)
    with pytest.raises(UserError, match=r"vectors of all tokens take .* GiB, for 2 texts of up to"):
        albert.encode(["a list", "a"])


def test_depth_needs_one_group_of_layers(tmp_path):
    folder = noisy_model(tmp_path / "model", worded_albert(num_hidden_groups=2), vocab=None)
    with pytest.raises(UserError, match="2 groups"):
        load(folder, depth=5)


def test_bfloat16_answers_in_float32_near_the_same(albert, directory):
    half = load(directory, compute=ComputeConfig(dtype="bfloat16"))
    wanted, found = albert.encode(TEXTS), half.encode(TEXTS)
    assert found.sequence.dtype == found.pooled.dtype == np.float32
    np.testing.assert_allclose(found.sequence, wanted.sequence, atol=0.1)
    auto = load(directory, compute=ComputeConfig(dtype="auto"))
    assert auto.compute.dtype in ("float32", "bfloat16")
    same = half if auto.compute.dtype == "bfloat16" else albert
    np.testing.assert_array_equal(auto.encode(TEXTS).sequence, same.encode(TEXTS).sequence)


def test_truncate_cuts_what_is_too_long(albert, tokenizer):
    long = " ".join(WORDS * 20)
    ids = tokenizer.encode(long).ids[:126]
    whole = albert.forward([[CLS_ID, *ids, SEP_ID]]).sequence[0]
    np.testing.assert_allclose(albert.encode(long, truncate=True).sequence[0], whole, **PADDED)
    assert albert.fill_mask(f"[MASK] {long}", truncate=True)
    with pytest.raises(UserError, match="not cut off"):
        albert.fill_mask(f"{long} [MASK]", truncate=True)
    with pytest.raises(UserError, match=r"has 2 of its 3 \[MASK\]s in what is cut off; shorten"):
        albert.fill_mask(f"[MASK] {long} [MASK] [MASK]", truncate=True)
    assert 0 < albert.score_order("the list", long, truncate=True) < 1


def test_a_pair_loses_tokens_of_its_longer_half():
    def loop(a, b, longest):  # the original's, token by token
        a, b = list(a), list(b)
        while len(a) + len(b) > longest - 3:
            (a if len(a) > len(b) else b).pop()
        return [CLS_ID, *a, SEP_ID, *b, SEP_ID], len(a) + 2

    for n in range(12):
        for m in range(12):
            a, b = list(range(10, 10 + n)), list(range(50, 50 + m))
            row = make_row(a, b, longest=11, special=ALBERT_IDS)
            assert row[:2] == loop(a, b, 11)


def test_a_pair_of_the_tokenizers_library_is_cut_as_it_cuts_it(tokenizer):
    def longest_first(first, second, room):  # its src/utils/truncation.rs
        least, most = sorted((first, second))
        if least + most > room:
            most = max(least, room - least)
        if least + most > room:
            least, most = room // 2, room // 2 + room % 2
        return (most, least) if first > second else (least, most)

    for first, second, room in itertools.product(range(1, 12), range(1, 12), (7, 8)):
        for mode in ("hf-fast", "wordpiece"):
            assert kept_of_pair(first, second, room, mode) == longest_first(first, second, room)
    assert kept_of_pair(9, 9, 7, "google") == kept_of_pair(9, 9, 7, "hf") == (4, 3)


def test_models_without_a_part_answer_what_they_can(tokenizer):
    params = noisy_params(worded_albert())
    whole = Albert(
        worded_albert(),
        params,
        tokenizer,
    )
    wanted = alone(whole, TEXTS[0])
    encoder = Albert(
        worded_albert(),
        {name: params[name] for name in ("embeddings", "encoder")},
        tokenizer,
    )
    output = alone(encoder, TEXTS[0])
    np.testing.assert_allclose(output.layers, wanted.layers, **PADDED)
    missing = (output.pooled, output.masked_lm_logits, output.sentence_order_logits)
    assert missing == (None, None, None)
    encoded = encoder.encode(TEXTS[0])
    assert encoded.pooled is None
    np.testing.assert_allclose(encoded.sequence, wanted.sequence, **PADDED)
    with pytest.raises(UserError, match="no weights for masked words"):
        encoder.fill_mask(MASKED[0])
    with pytest.raises(UserError, match="no weights for a pooler"):
        encoder.score_order("a", "b")
    only_masked = Albert(
        worded_albert(),
        {n: x for n, x in params.items() if n != "seq_relationship"},
        tokenizer,
    )
    assert texts_of(only_masked.fill_mask(MASKED[0])) == texts_of(whole.fill_mask(MASKED[0]))
    with pytest.raises(UserError, match="no weights for sentence order"):
        only_masked.score_order("a", "b")
    head = {"kind": "classification", "labels": ["a", "b"], "max_seq_length": 16}
    tuned = Albert(
        worded_albert(),
        {n: params[n] for n in ("embeddings", "encoder", "pooler")},
        tokenizer,
        head=head,
    )
    with pytest.raises(UserError, match="is fine-tuned, and so has no weights for masked words"):
        tuned.fill_mask(MASKED[0])


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda a: a.fill_mask("no gap"), r"'no gap' has no \[MASK\]"),
        (lambda a: a.fill_mask(MASKED[0], top_k=0), "top_k 0 must be between 1 and 8000"),
        (lambda a: a.fill_mask("[MASK] " + "the " * 200), "203 tokens .* model's 128"),
        (lambda a: a.fill_mask(MASKED[0], targets=["of the"]), "'of the' is 2"),
        (lambda a: a.fill_mask(MASKED[0], targets=[]), "targets is empty"),
        (lambda a: a.encode("the " * 127), "129 tokens .* model's 128; .* truncate"),
        (lambda a: a.encode("the", layer=4), "layer 4 must be between -4 and 3"),
        (lambda a: a.encode("the", layer=-5), "layer -5 must be between -4 and 3"),
        (lambda a: a.encode("the", pool="max"), "pool 'max' must be one of cls, mean or None"),
        (lambda a: a.score_order("the", ["a"]), "two texts, or two lists"),
        (lambda a: a.score_order(["the"], ["a", "b"]), "1 first texts and 2 second"),
        (lambda a: a.forward([1, 2]), "give .batch, sequence."),
        (lambda a: a.forward([[1, 8000]]), "0 to 7999"),
        (lambda a: a.forward([[1] * 129]), "129 tokens"),
        (lambda a: a.forward([[1, 2]], masked_lm_positions=[[2]]), "rows of 2 ids have 0 to 1"),
    ],
)
def test_mistakes_are_said(albert, ask, told):
    with pytest.raises(UserError, match=told):
        ask(albert)


def test_what_a_list_holds_is_named_by_its_place(albert):
    for ask, told in (
        (lambda: albert.encode(["one", None]), r"^texts\[1\] None must be a string"),
        (lambda: albert.encode(["one", "the " * 127]), r"^texts\[1\] 'the .*129 tokens"),
        (lambda: albert.fill_mask([MASKED[0], "no gap"]), r"^text\[1\] 'no gap' has no"),
        (lambda: albert.score_order(["a", "b"], ["c", 5]), r"^b\[1\] 5 must be a string"),
        (lambda: albert.fill_mask(MASKED[0], targets=["the", 5]), r"^targets\[1\] 5 must be"),
    ):
        with pytest.raises(UserError, match=told):
            ask()


@pytest.mark.parametrize(
    "make",
    [tuple, iter, np.array, lambda texts: (text for text in texts), lambda x: dict(x=x)["x"]],
)
def test_any_ordered_iterable_of_texts_will_do(albert, make):
    texts = [f"{text} [MASK]" for text in TEXTS[:3]]
    assert texts_of(albert.fill_mask(make(texts))) == texts_of(albert.fill_mask(texts))
    np.testing.assert_array_equal(albert.encode(make(texts)).mask, albert.encode(texts).mask)
    assert albert.score_order(make(texts), make(texts)).shape == (3,)


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\0", "\x07\x1b\x7f", "\ud800", "\u200b\ufeff", "\u0301"]
)
def test_texts_without_words_have_answers(albert, text):
    count = len(albert.tokenizer.encode(text).ids) + 2
    assert albert.encode(text).sequence.shape == (1, count, 16)
    assert 0 < albert.score_order(text, text) < 1
    with pytest.raises(UserError, match=r"has no \[MASK\]"):
        albert.fill_mask(text)
    assert len(albert.fill_mask(f"{text}[MASK]{text}")) == 5


def test_a_model_with_room_for_no_text_says_so(tokenizer):
    one, two = (
        Albert(
            tiny_albert(vocab_size=8000, num_hidden_layers=3, max_position_embeddings=n),
            noisy_params(worded_albert()),
            tokenizer,
        )
        for n in (1, 2)
    )
    with pytest.raises(UserError, match="2 tokens are more than the model's 1"):
        one.encode("", truncate=True)
    with pytest.raises(UserError, match="3 tokens are more than the model's 2"):
        two.score_order("", "", truncate=True)


def test_a_batch_of_no_rows_gives_arrays_of_none(albert):
    output = albert.forward(np.zeros((0, 4), int))
    assert output.layers.shape == (3, 0, 4, 16)
    assert output.masked_lm_logits.shape == (0, 4, 8000)
    assert output.sentence_order_logits.shape == (0, 2)


def test_forward_takes_no_input_that_is_out_of_range(albert):
    """A lookup clips what is out of range, and a mask of 5 is no mask: both gave answers."""
    ids = [[2, 13, 3]]
    for wrong, told in (
        ({"segment_ids": [[0, 2, 0]]}, "segment_ids go from 0 to 2; the model has segments 0 to 1"),
        ({"segment_ids": [[0, -1, 0]]}, "segment_ids go from -1 to 0"),
        ({"input_mask": [[1, 5, 1]]}, "input_mask go from 1 to 5"),
        ({"masked_lm_positions": [[0.5]]}, "masked_lm_positions has 0.5"),
    ):
        with pytest.raises(UserError, match=told):
            albert.forward(ids, **wrong)
    with pytest.raises(UserError, match=r"input_ids has 5\.9; its values must be whole numbers"):
        albert.forward([[2, 5.9, 3]])


@pytest.fixture(scope="module")
def overflowing(tokenizer):
    """A model all of whose parameters are finite, and whose last block's outputs are not."""
    params = jax.tree.map(
        np.array,
        noisy_params(worded_albert()),
    )
    params["encoder"]["group_0"]["inner_group_0"]["LayerNorm_1"]["scale"][:] = 3e38
    return Albert(
        worded_albert(),
        params,
        tokenizer,
    )


def test_answers_that_are_not_finite_are_refused_and_the_text_is_named(overflowing):
    told = r"the model's output is not finite .NaN or infinite.; prove its weights with"
    for ask, name in (
        (lambda: overflowing.fill_mask("a [MASK]"), r"'a \[MASK\]'"),
        (lambda: overflowing.fill_mask("a [MASK]", targets="the"), r"'a \[MASK\]'"),
        (lambda: overflowing.encode("the list"), "'the list'"),
        (lambda: overflowing.encode("the list", pool="mean"), "'the list'"),
        (lambda: overflowing.encode(["the list", "a"]), r"texts\[[01]\] '(the list|a)'"),
        (lambda: overflowing.score_order("the list", "a"), "'the list'"),
        (lambda: overflowing.attention("the list"), "'the list'"),
        (lambda: overflowing.forward([[2, 13, 3]]), "layers of row 0 of input_ids"),
    ):
        with pytest.raises(UserError, match=f"^{name}: {told}"):
            ask()
    assert not np.isfinite(overflowing.outputs([[2, 13, 3]]).sequence).all()
    assert np.isfinite(overflowing.encode("the list", layer=0, pool="cls").pooled).all()


def test_the_first_row_that_is_not_finite_is_named(albert, monkeypatch):
    def broken(*arguments, **settings):
        sequence, pooled = encode(*arguments, **settings)
        return sequence, pooled.at[1].set(np.nan)

    encode = albert._encode
    monkeypatch.setattr(albert, "_encode", broken)
    # Of one length, so that they are one batch in their order.
    with pytest.raises(UserError, match=r"^texts\[1\] 'the string': the model's output"):
        albert.encode(["the list", "the string", *["the length"] * 6])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_not_finite_are_found_in_any_dtype(dtype):
    rows = np.ones((3, 2, 2), jnp.dtype(dtype))
    whole = [None, np.array([[2**31 - 1]]), rows]
    assert inference._first_not_finite(whole) is None
    rows[2, 0, 1] = np.nan
    assert inference._first_not_finite(whole) == 2
    rows[1, 1, 1] = -np.inf
    assert inference._first_not_finite(whole) == 1


def test_a_pickled_model_gives_the_same_answers(albert, model):
    tuned = load(model("single"), depth=1)
    tuned.predict("the list")  # it holds compiled programs and arrays on the device
    copied, copied_tuned = pickle.loads(pickle.dumps((albert, tuned)))
    for text in TEXTS[:2]:
        ours, theirs = (each.encode(text) for each in (albert, copied))
        np.testing.assert_array_equal(ours.sequence, theirs.sequence)
        assert tuned.predict(text) == copied_tuned.predict(text)
    assert repr(copied_tuned) == repr(tuned)
    assert copied_tuned.config.num_hidden_layers == 1


def test_a_model_says_what_it_is(albert, directory, tokenizer):
    count = sum(x.size for x in jax.tree.leaves(noisy_params(worded_albert())))
    said = repr(load(directory, depth=5, compute=ComputeConfig(dtype="bfloat16")))
    for part in (
        f"from {directory}",
        f"{count:,} parameters",
        "5 layers of 16",
        "8,000 pieces",
        "heads predictions and seq_relationship",
        "bfloat16",
    ):
        assert part in said
    encoder = {name: albert.params[name] for name in ("embeddings", "encoder")}
    assert "no head, float32, no vocabulary" in repr(
        Albert(
            worded_albert(),
            encoder,
            None,
        )
    )
    head = {"kind": "classification", "task": "sst2", "labels": ["0", "1"]}
    assert "head classification (sst2)" in repr(
        Albert(
            worded_albert(),
            encoder,
            None,
            head=head,
        )
    )
    assert repr(tokenizer) == f"<Tokenizer 8,000 pieces, google, lower-cased, from {VOCABULARY}>"


@pytest.mark.parametrize("depth", [0, -1, "3", 2.0, True, 2**31])
def test_a_depth_that_is_none_is_refused(directory, depth):
    with pytest.raises(UserError, match=f"^depth {depth!r} must be "):
        load(directory, depth=depth)


def test_parameters_that_lack_a_part_are_refused(albert):
    with pytest.raises(UserError, match="params has no embeddings and no encoder"):
        Albert(worded_albert(), {}, None)


def test_a_model_without_a_vocabulary_takes_ids_only():
    albert = Albert(
        worded_albert(),
        noisy_params(worded_albert()),
        None,
    )
    assert albert.forward([[2, 13, 3]]).pooled.shape == (1, 16)
    with pytest.raises(UserError, match="no vocabulary"):
        albert.encode("the")


def test_many_texts_show_progress_on_a_terminal_only(albert, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        albert.encode(["the list"] * 2, pool="cls")
        assert stream.getvalue() == ""
        albert.encode(["the list"] * inference.MANY, pool="cls")
        assert (f"{inference.MANY}/{inference.MANY}" in stream.getvalue()) is shown


# --------------------------------------------------------------------------------- the command line


def run(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_fill_mask_prints_the_lists_of_the_python_call(albert, directory, capsys, tmp_path):
    printed = json.loads(run(capsys, "fill-mask", directory, MASKED[0], "--top-k=2", "--json"))
    assert texts_of(printed) == texts_of(albert.fill_mask(MASKED[0], top_k=2))
    printed = json.loads(run(capsys, "fill-mask", directory, *MASKED[:2], "--json"))
    assert texts_of(printed) == texts_of(albert.fill_mask(MASKED[:2]))
    (tmp_path / "texts").write_text("\n".join(MASKED) + "\n")
    lines = run(capsys, "fill-mask", directory, "--input", tmp_path / "texts", "--top-k=1")
    best = [answers[0]["sequence"] for answers in albert.fill_mask(MASKED, top_k=1)]
    assert [
        line.split("  ")[-1].strip() for line in lines.splitlines() if line[0].isdigit()
    ] == best


def test_a_text_of_a_file_is_named_by_its_row(directory, capsys, tmp_path):
    (tmp_path / "m.txt").write_text(f"{MASKED[0]}\n\n" + "the list " * 200 + "\n")
    assert cli.main(["fill-mask", str(directory), "--input", str(tmp_path / "m.txt")]) == 2
    (tmp_path / "e.txt").write_text("a\n" + "the list " * 200 + "\n")
    assert cli.main(["encode", str(directory), "--input", str(tmp_path / "e.txt")]) == 2
    blank, long = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/e.txt row 2 'the list" in long
    assert f"{tmp_path}/m.txt row 3 'the list" in blank  # the length is judged first
    (tmp_path / "m.txt").write_text(f"{MASKED[0]}\n\n")
    assert cli.main(["fill-mask", str(directory), "--input", str(tmp_path / "m.txt")]) == 2
    assert f"{tmp_path}/m.txt row 2 '' has no [MASK]; write" in capsys.readouterr().err


def test_encode_writes_arrays_or_a_line_of_json_for_each_text(albert, directory, capsys, tmp_path):
    run(capsys, "encode", directory, *TEXTS, "--output", tmp_path / "whole.npz")
    wanted = albert.encode(TEXTS)
    with np.load(tmp_path / "whole.npz") as found:
        assert sorted(found) == ["mask", "pooled", "sequence"]
        for name in found:
            np.testing.assert_allclose(found[name], getattr(wanted, name), **PADDED)
    lines = run(capsys, "encode", directory, *TEXTS, "--pool=mean", "--layer=1").splitlines()
    wanted = albert.encode(TEXTS, layer=1, pool="mean")
    found = [json.loads(line) for line in lines]
    assert [sorted(row) for row in found] == [["pooled", "text"]] * len(TEXTS)
    np.testing.assert_allclose([row["pooled"] for row in found], wanted.pooled, **PADDED)
    row = json.loads(run(capsys, "encode", directory, "the list", "--depth=1"))
    assert np.shape(row["sequence"]) == (4, 16)


def test_score_order_prints_a_probability(albert, directory, capsys):
    printed = run(capsys, "score-order", directory, *PAIRS[0])
    assert float(printed) == pytest.approx(albert.score_order(*PAIRS[0]), abs=1e-4)


def test_a_file_of_texts_is_read_line_by_line_and_left_alone(albert, directory, capsys, tmp_path):
    texts = tmp_path / "texts.npz"  # whatever it is called
    texts.write_bytes(b"\xef\xbb\xbfthe list\r\n\r\nthe string\r\n")
    lines = run(capsys, "encode", directory, "--input", texts, "--pool=cls").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["the list", "", "the string"]
    before = texts.read_bytes()
    (tmp_path / "link.npz").symlink_to(texts)
    for output in (texts, tmp_path / "link.npz"):
        assert (
            cli.main(["encode", str(directory), "--input", str(texts), "--output", str(output)])
            == 2
        )
        assert "is the input itself" in capsys.readouterr().err
    assert texts.read_bytes() == before


def test_texts_of_any_locale_come_out_as_json(directory, capsys, monkeypatch):
    typed = "the é".encode().decode("ascii", "surrogateescape")  # in a locale of ASCII
    assert json.loads(run(capsys, "encode", directory, typed, "--pool=cls"))["text"] == "the é"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert cli.main(["encode", str(directory), "the é", "--pool=cls"]) == 0
    stream.seek(0)
    assert json.loads(stream.read())["text"] == "the é"
    for command in (
        ["encode", "\udcff"],
        ["fill-mask", "\udcff [MASK]"],
        ["score-order", "a", "\udcff"],
    ):
        assert cli.main([command[0], str(directory), *command[1:]]) == 2
        assert "is not UTF-8 text" in capsys.readouterr().err


def test_texts_are_needed_once(directory, capsys):
    assert cli.main(["encode", str(directory)]) == 2
    assert "give texts, or a file of them with --input" in capsys.readouterr().err
    assert cli.main(["fill-mask", str(directory), "a", "--input", "b"]) == 2
    assert "not both" in capsys.readouterr().err


# ----------------------------------------------------------------------------- against transformers


@pytest.mark.peers
def test_fill_mask_is_transformers_pipeline(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = transformers.AlbertConfig(
        vocab_size=8000,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    model = transformers.AlbertForMaskedLM(config).eval()
    tokenizer = transformers.AlbertTokenizer(str(VOCABULARY))
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    albert_jax.convert(tmp_path / "hf", tmp_path / "model")
    pipeline = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    albert = load(tmp_path / "model")
    for text in [*MASKED, "the [MASK] of [MASK] lists", "Hello, I'm a [MASK] model."]:
        wanted, found = pipeline(text, top_k=7), albert.fill_mask(text, top_k=7)
        assert texts_of(found) == texts_of(wanted)
        np.testing.assert_allclose(scores_of(found), scores_of(wanted), atol=1e-5)


def scores_of(answers):
    return [scores_of(a) for a in answers] if isinstance(answers, list) else answers["score"]
