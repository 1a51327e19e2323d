# SPDX-License-Identifier: Apache-2.0
"""verify: what is right passes, each kind of damage fails its own line, and released weights are
told from others by their answers.

The real weights cannot be had here, so a small model stands for them: what is "published" about it
was computed by NumPy in float64 and by the original tokenizer.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import sentencepiece

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.convert.parameters import parameter_shapes
from albert_jax.checkpoint.model_dir import ModelDirectory
from albert_jax.checkpoint.model_export import export_model
from albert_jax.cli import main as cli
from albert_jax.config.manifests import Mode
from albert_jax.config.model import MODELS
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference import verify as verification
from albert_jax.inference import verify_released
from albert_jax.inference.api import Albert
from albert_jax.inference.published import RELEASED, Fill, Numbers, Released
from albert_jax.inference.verify import Verification, verify
from albert_jax.utils.errors import UserError
from tests.helpers import reference
from tests.helpers.golden import CHECKPOINTS, as_tf, original_model
from tests.helpers.models import noisy_params, tiny_albert
from tests.helpers.paths import VOCABULARY

SETTINGS = {"mode": "google", "do_lower_case": True}
SMALL = tiny_albert(vocab_size=8000, max_position_embeddings=32)
GENERIC = ["files", "inventory", "finite values", "vocabulary", "forward"]
KERNEL = "encoder/group_0/inner_group_0/attention/query/kernel"


def export(path: Path, params, *, config=SMALL, vocab=VOCABULARY, head=None) -> Path:
    """A model directory, also of numbers that are not finite, which no command writes."""
    with mock.patch("albert_jax.checkpoint.model_export.require_finite"):
        return export_model(
            path,
            params=params,
            config=config,
            vocab=vocab,
            tokenizer=SETTINGS,
            provenance={"steps": 3},
            head=head,
        )


def by_name(report) -> dict[str, tuple[str, str]]:
    rows = report["checks"] if isinstance(report, Mapping) else map(dataclasses.asdict, report)
    return {row["check"]: (row["verdict"], row["detail"]) for row in rows}


def failed(report) -> dict[str, str]:
    return {
        name: detail for name, (verdict, detail) in by_name(report).items() if verdict == "FAIL"
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("verify") / "model", noisy_params(SMALL))


# ------------------------------------------------------------------------------------ any model


def test_a_whole_model_passes_every_line(exported: Path) -> None:
    report = verify(exported)
    lines = by_name(report)
    assert report["verdict"] == "PASS"
    assert report["released"] is None
    assert {lines[name][0] for name in GENERIC} == {"PASS"}
    assert list(lines) == [*GENERIC, "released weights"]
    assert lines["released weights"] == ("SKIP", "none has this architecture")
    assert report["parameters"] == sum(x.size for x in jax.tree.leaves(noisy_params(SMALL)))
    assert f"{report['parameters']:,} parameters" in lines["inventory"][1]
    assert Verification.from_json(json.loads(json.dumps(report))) == report


def test_the_originals_checkpoint_passes_once_converted(tmp_path: Path) -> None:
    convert(CHECKPOINTS["tiny"], tmp_path / "tiny", no_vocab=True)
    lines = by_name(verify(tmp_path / "tiny"))
    assert [lines[name][0] for name in GENERIC] == ["PASS", "PASS", "PASS", "SKIP", "PASS"]
    assert "predictions, seq_relationship" in lines["inventory"][1]


@pytest.mark.parametrize("kind", ["token_classification", "span_v2"])
def test_a_fine_tuned_model_without_pooler_passes_with_its_head(kind: str, tmp_path: Path) -> None:
    params = {n: x for n, x in noisy_params(SMALL).items() if n in ("embeddings", "encoder")}
    rng = np.random.default_rng(0)
    for name, shape in parameter_shapes(SMALL, kind, 3).items():
        *parents, leaf = name.split("/")
        if parents and parents[0] == "head":
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = rng.standard_normal(shape).astype(np.float32)
    head = {"kind": kind, "labels": None}
    lines = by_name(verify(export(tmp_path / "model", params, head=head)))
    assert {lines[name][0] for name in GENERIC} == {"PASS"}
    assert f"head ({kind})" in lines["inventory"][1]
    assert "head" in lines["forward"][1]
    if kind == "span_v2":
        return
    params["head"] = jax.tree.map(lambda x: x * np.nan, params["head"])
    report = verify(export(tmp_path / "model", params, head=head))
    assert failed(report)["forward"] == "NaN or infinite: head"


def _set(tree, path, value):
    *parents, leaf = path.split("/")
    for parent in parents:
        tree = tree[parent]
    if value is None:
        del tree[leaf]
    else:
        tree[leaf] = value(tree[leaf]) if callable(value) else value


def _with(value, indices):
    def change(array):
        array = array.copy()
        array[indices] = value
        return array

    return change


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        (
            KERNEL,
            _with(np.nan, (3, 3)),
            {"finite values": f"{KERNEL} has 1", "forward": "sequence"},
        ),
        (
            "embeddings/word_embeddings",
            _with(np.inf, (7000, slice(2))),
            {"finite values": "embeddings/word_embeddings has 2"},
        ),
        (
            "encoder/group_0/inner_group_0/LayerNorm_1/scale",
            lambda x: x + 3e38,
            {"forward": "NaN or infinite: layers"},
        ),
        (KERNEL, None, {"inventory": f"{KERNEL} is missing", "forward": "not computed"}),
        ("pooler", None, {"inventory": "pooler/bias is missing; pooler/kernel is missing"}),
        ("encoder", None, {"inventory": "embedding_hidden_mapping_in/kernel is missing; "}),
        (
            "encoder/extra",
            lambda: np.zeros(3, np.float32),
            {"inventory": "encoder/extra is unused"},
        ),
        (
            "pooler/bias",
            lambda x: x[:5],
            {"inventory": "pooler/bias is [5], not [16]"},
        ),
        (
            "embeddings/token_type_embeddings",
            lambda x: x.T.copy(),
            {"inventory": "token_type_embeddings is [8, 2], not [2, 8]"},
        ),
    ],
)
def test_damaged_parameters_fail_their_own_lines(path, value, lines, tmp_path: Path) -> None:
    params = jax.tree.map(np.array, noisy_params(SMALL))
    if path == "encoder/extra":
        params["encoder"]["extra"] = value()
    else:
        _set(params, path, value)
    report = verify(export(tmp_path / "model", params))
    assert report["verdict"] == "FAIL"
    found = failed(report)
    for name, detail in lines.items():
        assert detail in found[name]
    assert set(found) <= {"inventory", "finite values", "forward"}
    assert "files" not in found


def test_a_network_that_attends_to_padding_fails(tmp_path: Path, monkeypatch) -> None:
    config = dataclasses.replace(SMALL, hidden_size=20)  # of its own, as JAX keeps what it traced
    model = export(tmp_path / "model", noisy_params(config), config=config)
    monkeypatch.setattr("albert_jax.models.attention_plain.PADDING_LOGIT", 0.0)
    assert "the ids under padding change" in failed(verify(model))["forward"]


def test_files_that_changed_fail_the_first_line(exported: Path, tmp_path: Path) -> None:
    model = shutil.copytree(exported, tmp_path / "model")
    vocabulary = model / "spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1] + b"x")
    report = verify(model)
    assert list(by_name(report)) == ["files"]
    assert "spiece.model: SHA-256" in failed(report)["files"]
    assert report["parameters"] is None


def test_rows_without_a_piece_pass_and_are_said(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, vocab_size=8064)
    report = verify(export(tmp_path / "padded", noisy_params(config), config=config))
    assert report["verdict"] == "PASS"
    assert by_name(report)["vocabulary"][1].startswith("8,000 pieces for 8,064 rows of embeddings")


def test_another_vocabulary_fails_its_line(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, vocab_size=7999)
    report = verify(export(tmp_path / "size", noisy_params(config), config=config))
    assert failed(report) == {"vocabulary": "8,000 pieces, but the model has 7,999"}
    model = tmp_path / "layout.model"
    with model.open("wb") as file:  # SentencePiece's own layout: <unk> <s> </s>
        lines = (f"the cat sat on the mat number {i}" for i in range(200))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=40, minloglevel=2
        )
    config = dataclasses.replace(SMALL, vocab_size=40)
    report = verify(export(tmp_path / "model", noisy_params(config), config=config, vocab=model))
    assert list(failed(report)) == ["vocabulary"]
    assert (
        "at ids 0 to 4 where an ALBERT vocabulary has <pad> <unk>" in failed(report)["vocabulary"]
    )


# ------------------------------------------------------------------------------ released weights


class Fake:
    """A small model that plays the released one, and what is published about it."""

    def __init__(self) -> None:
        self.config = SMALL
        self.params = jax.tree.map(np.array, noisy_params(SMALL))
        self.tokenizer = Tokenizer.load(VOCABULARY)
        self.albert = Albert(SMALL, self.params, self.tokenizer)
        ids, mask = np.array([[0, 345, 232, 7999, 2]]), np.array([[0, 1, 1, 1, 1]])
        variables = as_tf(self.params, SMALL)
        _, layers, pooled = reference.forward(variables, SMALL, ids, mask, np.zeros_like(ids))
        text = np.array([[2, 13, 3126, 243, 4, 3]])  # Hello [MASK]
        ones = np.ones_like(text)
        _, on_text, _ = reference.forward(variables, SMALL, text, ones, 0 * ones)
        logits_V = reference.masked_lm_logits(variables, on_text[-1], np.array([[4]]))[0, 0]
        best = np.argsort(-logits_V)[:3]
        words = tuple(self.tokenizer.decode([i]) for i in best)
        scores = tuple(reference.softmax(logits_V)[best])
        v2, both = ("small-v2",), ("small-v1", "small-v2")
        row, attended = tuple(ids[0]), tuple(mask[0])
        state_SH = layers[-1][0]
        self.published = Released(
            {
                "small-v1": dataclasses.replace(SMALL, hidden_dropout_prob=0.1),
                "small-v2": SMALL,
                "large-v2": dataclasses.replace(SMALL, hidden_size=32),
            },
            # transformers' slow tokenizer
            {"Hello world": (13, 3126, 243, 1182), "hello, world!": (13, 3126, 243, 15, 1182, 490)},
            {4: "[MASK]"},
            (
                Numbers(v2, "NumPy", "sequence", row, (1, 1), state_SH[1:3, 1:4], 1e-4, attended),
                Numbers(v2, "NumPy", "pooled", row, (0,), pooled[0, :5], 1e-4, attended),
                Fill(v2, "NumPy", "Hello [MASK]", words),
                Fill(both, "a card", " Hello [MASK]", words, tuple(best), scores, certain=False),
            ),
        )  # fmt: skip
        self.answers = [answer.name for answer in self.published.answers]

    def check(self, *, released=None, expect=None, source=None, **changes):
        """(name, {line: (verdict, detail)}) for the model with these parts changed."""
        settings = {"path": VOCABULARY, **SETTINGS}
        manifest = {"provenance": {"source": source}, "head": changes.get("head")}
        config = changes.get("config", self.config)
        model = ModelDirectory(changes.get("params", self.params), config, settings, manifest)
        tokenizer = changes.get("tokenizer", self.tokenizer)
        same = not {"config", "params", "tokenizer"} & changes.keys()
        albert = self.albert if same else Albert(config, model.params, tokenizer)
        name, checks = verify_released.check_answers(
            model, albert, tokenizer, expect, released or self.published
        )
        return name, by_name(checks)

    def publish(self, index: int, **changes) -> Released:
        """The published answers with one of them changed."""
        table = list(self.published.answers)
        table[index] = dataclasses.replace(table[index], **changes)
        return dataclasses.replace(self.published, answers=tuple(table))


@pytest.fixture(scope="module")
def fake() -> Fake:
    return Fake()


def verdicts(lines) -> list[str]:
    return [verdict for verdict, _ in lines.values()]


@pytest.mark.parametrize(
    "told", [{}, {"expect": "small-v2"}, {"source": "https://x.org/albert_small_v2.tar.gz"}]
)
def test_the_released_weights_pass_every_line_and_are_named(fake: Fake, told) -> None:
    name, lines = fake.check(**told)
    assert name == "small-v2"
    assert list(lines) == ["released weights", "released vocabulary", *fake.answers]
    assert set(verdicts(lines)) == {"PASS"}
    assert "(NumPy)" in lines[fake.answers[0]][1]


def test_one_answer_that_differs_fails_alone(fake: Fake) -> None:
    first = fake.published.answers[0]
    values = first.values.copy()
    values[1, 2] += 3e-4
    name, lines = fake.check(released=fake.publish(0, values=values))
    assert name == "small-v2", "known by the other numbers"
    assert [line for line, (verdict, _) in lines.items() if verdict != "PASS"] == [first.name]
    assert lines[first.name][0] == "FAIL"
    assert "largest difference 0.0003, allowed 0.0001" in lines[first.name][1]
    words = fake.published.answers[2].words
    _, lines = fake.check(released=fake.publish(2, words=(words[1], words[0], words[2])))
    assert lines["Hello [MASK]"][0] == "FAIL"
    assert lines["Hello [MASK]"][1].startswith(f"{', '.join(words)}, not {words[1]}, {words[0]}")


def test_a_card_that_differs_is_no_failure(fake: Fake) -> None:
    """Several models' cards print the same examples, which can be only one's."""
    scores = tuple(score + 0.01 for score in fake.published.answers[3].scores)
    ids = fake.published.answers[3].ids
    for changes in ({"scores": scores}, {"ids": ids[::-1]}):
        name, lines = fake.check(released=fake.publish(3, **changes))
        verdict, detail = lines[" Hello [MASK]"]
        assert (name, verdict) == ("small-v2", "SKIP")
        assert "several models' cards print this one" in detail


def test_other_weights_of_that_size_fail_only_where_released_ones_are_expected(fake: Fake) -> None:
    params = jax.tree.map(np.array, noisy_params(SMALL, seed=1))
    name, lines = fake.check(params=params)
    assert name is None
    assert list(lines) == ["released weights", "released vocabulary"]
    assert lines["released weights"][0] == "SKIP"
    assert "of the size of small-v1, small-v2" in lines["released weights"][1]
    for told in ({"expect": "small-v2"}, {"source": "albert_small_v2.tar.gz"}):
        name, lines = fake.check(params=params, **told)
        assert name is None
        assert lines["released weights"][0] == "FAIL"
        assert [lines[answer][0] for answer in fake.answers] == ["FAIL"] * 3 + ["SKIP"]


def test_weights_that_are_another_released_models_fail(fake: Fake) -> None:
    name, lines = fake.check(expect="small-v1")
    assert name is None
    assert lines["released weights"][0] == "FAIL"
    assert "small-v2's, by its published numbers, not small-v1's" in lines["released weights"][1]
    name, lines = fake.check(expect="large-v2")
    assert lines == {"released weights": ("FAIL", "not large-v2: hidden_size is 16, not 32")}


def test_released_weights_with_another_vocabulary_fail(fake: Fake) -> None:
    texts = {"Hello world": (13, 3126, 243, 1183)}
    name, lines = fake.check(released=dataclasses.replace(fake.published, texts=texts))
    assert name == "small-v2"
    assert lines["released vocabulary"] == (
        "FAIL",
        "'Hello world' has other ids: 1182 at 3, not 1183",
    )
    cased = Tokenizer.load(VOCABULARY, do_lower_case=False)
    _, lines = fake.check(tokenizer=cased)
    assert lines["released vocabulary"][0] == "FAIL"
    _, lines = fake.check(released=dataclasses.replace(fake.published, pieces={4: "<s>"}))
    assert lines["released vocabulary"] == ("FAIL", "piece 4 is [MASK], not <s>")


def test_what_cannot_be_asked_is_skipped(fake: Fake) -> None:
    name, lines = fake.check(tokenizer=None)
    assert name == "small-v2"
    assert lines["released vocabulary"][0] == "SKIP"
    assert lines["Hello [MASK]"] == ("SKIP", "no vocabulary (NumPy)")
    bare = {n: x for n, x in fake.params.items() if n in ("embeddings", "encoder")}
    name, lines = fake.check(params=bare)
    assert name == "small-v2"
    assert [lines[answer][0] for answer in fake.answers] == ["PASS", "SKIP", "SKIP", "SKIP"]


def test_a_fine_tuned_model_is_not_held_against_answers(fake: Fake) -> None:
    head = {"kind": "classification", "labels": None}
    name, lines = fake.check(head=head, source="albert_small_v2.tar.gz")
    assert (name, verdicts(lines)) == (None, ["SKIP"])
    assert fake.check(head=head, expect="small-v2")[0] == "small-v2"


def test_the_wrong_activation_is_found_and_said(fake: Fake) -> None:
    config = dataclasses.replace(SMALL, hidden_act="relu")
    name, lines = fake.check(config=config, expect="small-v2")
    assert name is None
    assert lines["activation"] == ("SKIP", "relu, where the original computes gelu")
    assert lines[fake.answers[0]][0] == "FAIL"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("albert_base_v2.tar.gz", "base-v2"),
        ("gs://albert_models/albert_xxlarge_v1.tar.gz", "xxlarge-v1"),
        ("/data/albert-base-v2/", "base-v2"),
        ("/data/albert_base_v2/model.ckpt-best", "base-v2"),
        ("/data/albert-large-v2/model.safetensors", "large-v2"),
        (
            "/hub/models--albert--albert-base-v2/snapshots/8e2f239c5f8a2c0f253781ca60135db9",
            "base-v2",
        ),
        ("/hub/models--albert-base-v1/snapshots/8e2f239c5f8a2c0f/model.safetensors", "base-v1"),
        ("my-albert-base-v2", None),
        ("albert-base-v2-finetuned", None),
        ("/data/albert-base-v2/checkpoint-500", None),
        ("albert_tiny_v2.tar.gz", None),
        ("", None),
        (None, None),
    ],
)
def test_a_released_model_is_known_by_its_archives_or_folders_name(source, name) -> None:
    assert verify_released.named_by_source({"provenance": {"source": source}}, RELEASED) == name


def test_what_is_published_is_consistent() -> None:
    ids_of: dict[str, int] = {}
    for answer in RELEASED.answers:
        assert set(answer.models) <= set(MODELS)
        if isinstance(answer, Numbers):
            assert len(answer.corner) == np.ndim(answer.values)
            assert answer.input_mask is None or len(answer.input_mask) == len(answer.input_ids)
            config, shape = MODELS[answer.models[0]], np.shape(answer.values)
            sizes = {
                "sequence": (len(answer.input_ids), config.hidden_size),
                "pooled": (config.hidden_size,),
                "masked_lm_logits": (len(answer.input_ids), config.vocab_size),
            }[answer.output]
            assert all(
                a + n <= size for a, n, size in zip(answer.corner, shape, sizes, strict=True)
            )
        elif answer.ids:
            assert len(answer.words) == len(answer.ids) == len(answer.scores)
            assert list(answer.scores) == sorted(answer.scores, reverse=True)
            for word, token in zip(answer.words, answer.ids, strict=True):
                assert ids_of.setdefault(word, token) == token
    for text, ids in RELEASED.texts.items():
        assert all(0 <= i < 30000 for i in ids)
        assert len(ids) >= len(text.split()), text


@pytest.mark.parametrize("mode", ["google", "hf"])
def test_the_published_ids_are_those_of_the_real_vocabulary(shared: Path, mode: Mode) -> None:
    """13 words of the model cards' examples, and every text whose ids others have published."""
    file = shared / "data" / "vocab" / "30k-clean.model"
    if not file.is_file():
        pytest.skip(f"the real vocabulary is not here: {file}")
    tokenizer = Tokenizer.load(file, mode=mode)
    fills = [answer for answer in RELEASED.answers if isinstance(answer, Fill)]
    ids = {
        token: word
        for fill in fills
        for word, token in zip(fill.words, fill.ids, strict=bool(fill.ids))
    }
    assert len(ids) == 13
    assert {token: tokenizer.pieces[token] for token in ids} == {
        token: f"\u2581{word}" for token, word in ids.items()
    }
    assert all(tokenizer.pieces[token] == piece for token, piece in RELEASED.pieces.items())
    for text, wanted in RELEASED.texts.items():
        assert tuple(tokenizer.encode(text, parse_special=True).ids) == wanted, text


# ---------------------------------------------------------------------------------- the command


def test_the_command_prints_a_line_each_and_fails_with_status_2(exported, tmp_path, capsys):
    assert cli.main(["verify", str(exported)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [line.split()[0] for line in said.out.splitlines()] == ["PASS"] * 5 + ["SKIP"]
    params = jax.tree.map(np.array, noisy_params(SMALL))
    params["pooler"]["bias"][0] = np.nan
    damaged = export(tmp_path / "model", params)
    assert cli.main(["verify", str(damaged), "--json"]) == 2
    said = capsys.readouterr()
    assert failed(json.loads(said.out)).keys() == {"finite values", "forward"}
    assert said.err == f"albert-jax: {damaged}: 2 of 5 checks failed: finite values, forward\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--expect", "base-v3"), "'base-v3' is unknown (did you mean base-v2?)"),
        (("--expect", "base-v2"), "1 of 6 checks failed: released weights"),
    ],
)
def test_an_expectation_that_is_unknown_or_not_met_is_one_line(exported, arguments, told, capsys):
    assert cli.main(["verify", str(exported), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_path_that_is_no_model_directory_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model directory"):
        verify(tmp_path)


def test_tiny_has_what_the_inventory_counts() -> None:
    config, params = original_model()
    model = ModelDirectory(params, config, {"path": None, **SETTINGS}, {"head": None})
    check = verification._inventory(model)
    assert check.verdict == "PASS"
    assert check.detail.startswith(f"{len(as_tf(params, config))} tensors, ")
