# SPDX-License-Identifier: Apache-2.0
"""Inference against the original's numbers, against itself without batches, and against
transformers' pipeline."""

import io
import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import albert_jax
from albert_jax import cli, functions, inference
from albert_jax.batching import make_row, padded_length, plan
from albert_jax.config import AlbertConfig, ComputeConfig
from albert_jax.errors import UserError
from albert_jax.formats.tf_bundle import CheckpointReader
from albert_jax.formats.tf_names import from_tf
from albert_jax.inference import Albert, load
from albert_jax.model import AlbertForPretraining
from albert_jax.model_dir import export_model
from albert_jax.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer
from tests import reference
from tests.golden import as_tf, tiny
from tests.test_model import noisy_params

VOCABULARY = Path(__file__).parent / "data" / "tokenizer" / "en8k.model"
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


def small(**changes) -> AlbertConfig:
    values = {
        "vocab_size": 8000,
        "embedding_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
    }
    return AlbertConfig(**(values | changes))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(VOCABULARY)


@pytest.fixture(scope="module")
def albert(tokenizer):
    return Albert(small(), noisy_params(small()), tokenizer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The same model as a model directory."""
    return export_model(
        tmp_path_factory.mktemp("inference") / "model",
        params=noisy_params(small()),
        config=small(),
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        provenance={},
    )


def golden_inputs(expected, count=3):
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    return [expected[name].astype(np.int32) for name in names[:count]]


# ----------------------------------------------------------------------------- against the original


@pytest.mark.parametrize("name", ["tiny", "tiny_inner2"])
def test_encode_gives_each_layer_of_the_original(shared, name):
    folder = shared / "golden" / name
    config = AlbertConfig.from_json(folder / "tf_ckpt" / "albert_config.json")
    params = from_tf(CheckpointReader.open(folder / "tf_ckpt").read_all(), config)
    expected = dict(np.load(folder / "forward.npz"))
    inputs = golden_inputs(expected)
    encode = jax.jit(
        partial(functions.encode, AlbertForPretraining(config)), static_argnames=("layer", "pool")
    )
    blocks = config.num_hidden_layers * config.inner_group_num
    names = ["embedding_hidden_mapping_output", *(f"layer_{i:02}" for i in range(blocks))]
    for layer in (0, 1, blocks):
        wanted = expected[names[layer]] * inputs[1][..., None]
        sequence, pooled = encode(params, *inputs, layer=layer)
        np.testing.assert_allclose(sequence, wanted, err_msg=names[layer], **FORWARD)
        np.testing.assert_allclose(pooled, expected["pooled_output"], **FORWARD)
    _, cls = encode(params, *inputs, layer=1, pool="cls")
    _, mean = encode(params, *inputs, layer=1, pool="mean")
    first = expected["layer_00"]
    means = [row[: mask.sum()].mean(0) for row, mask in zip(first, inputs[1], strict=True)]
    np.testing.assert_allclose(cls, first[:, 0], **FORWARD)
    np.testing.assert_allclose(mean, means, **FORWARD)


def test_sentence_order_and_filled_masks_are_those_of_the_original():
    config, params, arrays = tiny()
    expected = {k.removeprefix("forward/"): x for k, x in arrays.items() if k.startswith("forward")}
    model = AlbertForPretraining(config)
    ids, mask, segments, positions = golden_inputs(expected, 4)
    found = functions.sentence_order(model, params, ids, mask, segments)
    odds = np.exp(expected["sop_logits"].astype(np.float64))
    np.testing.assert_allclose(found, odds[:, 0] / odds.sum(1), **FORWARD)

    scores, tokens = functions.fill_mask(model, params, ids, mask, segments, positions, top_k=3)
    variables = as_tf(params, config)
    _, layers, _ = reference.forward(variables, config, ids, mask, segments)
    odds = np.exp(reference.masked_lm_logits(variables, layers[-1], positions))
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


def test_a_stream_of_all_lengths_compiles_a_handful_of_programs(tokenizer):
    config = small(num_hidden_layers=1, max_position_embeddings=512)
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
    batches = plan(lengths, longest=longest, tokens=tokens)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        longest_row = max(lengths[row] for row in batch.rows)
        assert batch.length == padded_length(longest_row, longest)
        assert longest_row <= batch.length < max(2 * longest_row, 17)
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= tokens
    assert len({(len(b.rows), b.length) for b in batches}) <= len({b.length for b in batches}) + 2


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


def test_depth_needs_one_group_of_layers(tmp_path):
    config = small(num_hidden_groups=2)
    folder = export_model(
        tmp_path / "model",
        params=noisy_params(config),
        config=config,
        vocab=None,
        tokenizer={"mode": "google", "do_lower_case": True},
        provenance={},
    )
    with pytest.raises(UserError, match="2 groups"):
        load(folder, depth=5)


def test_bfloat16_answers_in_float32_near_the_same(albert, directory):
    half = load(directory, compute=ComputeConfig(dtype="bfloat16"))
    wanted, found = albert.encode(TEXTS), half.encode(TEXTS)
    assert found.sequence.dtype == found.pooled.dtype == np.float32
    np.testing.assert_allclose(found.sequence, wanted.sequence, atol=0.1)


def test_truncate_cuts_what_is_too_long(albert, tokenizer):
    long = " ".join(WORDS * 20)
    ids = tokenizer.encode(long).ids[:126]
    whole = albert.forward([[CLS_ID, *ids, SEP_ID]]).sequence[0]
    np.testing.assert_allclose(albert.encode(long, truncate=True).sequence[0], whole, **PADDED)
    assert albert.fill_mask(f"[MASK] {long}", truncate=True)
    with pytest.raises(UserError, match="not cut off"):
        albert.fill_mask(f"{long} [MASK]", truncate=True)
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
            assert make_row(a, b, longest=11)[:2] == loop(a, b, 11)


def test_models_without_a_part_answer_what_they_can(tokenizer):
    params = noisy_params(small())
    whole = Albert(small(), params, tokenizer)
    wanted = alone(whole, TEXTS[0])
    encoder = Albert(small(), {name: params[name] for name in ("embeddings", "encoder")}, tokenizer)
    output = alone(encoder, TEXTS[0])
    np.testing.assert_allclose(output.layers, wanted.layers, **PADDED)
    missing = (output.pooled, output.masked_lm_logits, output.sentence_order_logits)
    assert missing == (None, None, None)
    encoded = encoder.encode(TEXTS[0])
    assert encoded.pooled is None
    np.testing.assert_allclose(encoded.sequence, wanted.sequence, **PADDED)
    with pytest.raises(UserError, match="without masked words"):
        encoder.fill_mask(MASKED[0])
    with pytest.raises(UserError, match="without a pooler"):
        encoder.score_order("a", "b")
    only_masked = Albert(
        small(), {n: x for n, x in params.items() if n != "seq_relationship"}, tokenizer
    )
    assert texts_of(only_masked.fill_mask(MASKED[0])) == texts_of(whole.fill_mask(MASKED[0]))
    with pytest.raises(UserError, match="without sentence order"):
        only_masked.score_order("a", "b")


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
        (lambda a: a.encode("the", pool="max"), "pool 'max' is unknown"),
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


def test_a_model_without_a_vocabulary_takes_ids_only():
    albert = Albert(small(), noisy_params(small()), None)
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


def test_texts_are_needed_once(directory, capsys):
    assert cli.main(["encode", str(directory)]) == 2
    assert "give texts, or a file of them with --input" in capsys.readouterr().err
    assert cli.main(["fill-mask", str(directory), "a", "--input", "b"]) == 2
    assert "not both" in capsys.readouterr().err


# ----------------------------------------------------------------------------- against transformers


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
