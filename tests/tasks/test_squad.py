# SPDX-License-Identifier: Apache-2.0
"""SQuAD against the original's own features, predictions and scores, the official evaluator's, and
real files."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.tokenizer import MARKER, Tokenizer
from albert_jax.tasks import TASKS, RawExample, squad_reader
from albert_jax.tasks.squad import SpanPredictions, SquadTask
from albert_jax.tasks.squad_metrics import (
    TUNED,
    exact_match,
    f1_v1,
    f1_v2,
    normalize_answer,
    question_scores,
    score_v1,
    score_v2,
)
from albert_jax.tasks.squad_reader import read_squad
from albert_jax.tasks.squad_spans import encode_passage, windows
from albert_jax.utils.errors import UserError
from tests.helpers import original_spans
from tests.helpers.compressed import unpack
from tests.helpers.golden import FOLDER
from tests.helpers.paths import VOCABULARY

DROPPED = {"dev-p10-q0", "dev-p10-imp"}  # the Korean passage, whose alignment the original gives up
RUNS = {0: "squad1", 1: "squad1", 2: "squad2", 3: "squad2", 4: "squad1"}
TOKENIZERS = {lower: Tokenizer.load(VOCABULARY, do_lower_case=lower) for lower in (True, False)}
CONTEXT = "Zürich  lies in Switzerland, north of the Alps."


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in SQuAD's format, and what the original made of them."""
    return unpack(FOLDER / "squad_eval", tmp_path_factory.mktemp("squad_eval"))


@pytest.fixture(scope="module")
def runs(golden: Path) -> list[dict]:
    return json.loads((golden / "features.json").read_text())["runs"]


def _task(number: int, run: dict) -> SquadTask:
    sizes = {name: run[name] for name in ("doc_stride", "max_query_length")}
    return dataclasses.replace(TASKS[RUNS[number]], **sizes)


def _kept(golden: Path, run: dict) -> list[RawExample]:
    """The examples that the original keeps."""
    examples = read_squad(golden / run["file"], is_training=run["is_training"])
    return [example for example in examples if example.id not in DROPPED]


def _features(task: SquadTask, examples: list[RawExample], run: dict) -> list:
    tokenizer = TOKENIZERS[run["do_lower_case"]]
    return [
        feature
        for index, example in enumerate(examples)
        for feature in task.features(example, index, tokenizer, run["max_seq_length"])
    ]


# ---------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("number", RUNS)
def test_features_equal_the_originals(golden: Path, runs: list[dict], number: int) -> None:
    run = runs[number]
    task, examples = _task(number, run), _kept(golden, run)
    features = _features(task, examples, run)
    assert len(examples) == run["n_examples"] - run["n_mismatch_dropped"]
    assert len(features) == len(run["features"])
    for feature, wanted in zip(features, run["features"], strict=True):
        length = wanted["paragraph_len"]
        assert feature.input_ids == wanted["input_ids"][:length]
        assert feature.segment_ids == wanted["segment_ids"][:length]
        first = feature.extra["passage_start"]
        owned = {str(first + i): bool(x) for i, x in enumerate(feature.extra["is_max_context"])}
        assert owned == wanted["token_is_max_context"]
        if task.head == "span_v2":
            assert feature.targets["p_mask"] == wanted["p_mask"][:length]
            assert set(wanted["p_mask"][length:]) <= {1}
        if run["is_training"]:
            assert feature.targets["start_positions"] == wanted["start_position"]
            assert feature.targets["end_positions"] == wanted["end_position"]
            assert feature.targets.get("is_impossible", 0) in (0, wanted["is_impossible"])


@pytest.mark.parametrize("number", RUNS)
def test_spans_of_pieces_are_the_originals_texts(
    golden: Path, runs: list[dict], number: int
) -> None:
    run = runs[number]
    examples = _kept(golden, run)
    features = _features(_task(number, run), examples, run)
    for feature, wanted in zip(features, run["features"], strict=True):
        context, extra = examples[feature.example].texts[1], feature.extra
        starts, ends = wanted["tok_start_to_orig_index"], wanted["tok_end_to_orig_index"]
        for i in range(len(starts)):
            for j in range(i, min(i + 12, len(starts))):
                text = context[extra["starts"][i] : extra["ends"][j]].strip()
                assert text == context[starts[i] : ends[j] + 1].strip()


# Pieces of the dev set of SQuAD 1.1 whose text differs: the original leaves an accent that has no
# precomposed letter out of an answer that ends with it, and takes signs without width into one.
OTHERWISE = {
    ("\u0250\u032f", "\u0250"),
    ("many", "\u200b\u200bmany"),
    ("but", "\u200b\u200bbut"),
    ("4", "\ufeff4"),
}


def test_each_piece_of_real_contexts_has_the_span_that_the_originals_alignment_finds(
    shared: Path,
) -> None:
    data = json.loads((shared / "data" / "squad" / "dev-v1.1.json").read_text())["data"]
    contexts = [paragraph["context"] for article in data for paragraph in article["paragraphs"]]
    assert len(contexts) == 2067
    tokenizer = TOKENIZERS[True]
    odd = [context for context in contexts if not context.isprintable() or "\u032f" in context]
    markers = Counter[str]()
    found = set()
    for context in ['"Oz" is a film.', '("a")', *odd, *contexts[::40]]:
        passage = encode_passage(tokenizer, context)
        pieces = tokenizer.encode(context, parse_special=False).tokens
        wanted = original_spans.piece_spans(context, pieces, lower=True)
        spans = zip(pieces, passage.starts, passage.answer_ends(), wanted, strict=True)
        for at, (piece, start, end, (first, after)) in enumerate(spans):
            ours, theirs = context[start:end].strip(), context[first:after].strip()
            if ours != theirs:
                found.add((ours, theirs))
            if piece == MARKER:
                markers["first" if at == 0 else "later"] += 1
                assert bool(ours) == (at == 0)
    assert found == OTHERWISE
    assert markers["first"] > 5 < 500 < markers["later"]


def test_no_example_is_lost_where_the_original_drops_one(golden: Path, runs: list[dict]) -> None:
    run = runs[2]
    task = _task(2, run)
    examples = read_squad(golden / run["file"], is_training=True)
    lost = next(example for example in examples if example.id == "dev-p10-q0")
    (feature,) = task.features(lost, 0, TOKENIZERS[True], run["max_seq_length"])
    (answer,) = _answers(feature, lost)
    # The vocabulary has no Korean: the word 서울이다 is one piece.
    assert (lost.label, answer) == ("서울", "서울이다")


def _answers(feature, example: RawExample) -> list[str]:
    """The text at a feature's positions, if it has any."""
    first = feature.extra["passage_start"]
    start, end = (feature.targets[f"{name}_positions"] - first for name in ("start", "end"))
    if start < 0:
        return []
    text = example.texts[1][feature.extra["starts"][start] : feature.extra["ends"][end]]
    return [text.strip()]


@given(st.integers(0, 90), st.integers(1, 40), st.integers(1, 50))
def test_each_piece_has_one_window_of_its_own(pieces: int, room: int, stride: int) -> None:
    found = windows(pieces, room, stride)
    owners = np.zeros(pieces, int)
    for window in found:
        assert window.length == min(room, pieces - window.start)
        owners[window.start : window.start + window.length] += window.is_max_context
    assert (owners == 1).all()
    assert found[-1].start + found[-1].length == pieces
    assert all(b.start - a.start == min(stride, room) for a, b in itertools.pairwise(found))


def test_text_that_looks_like_a_special_token_is_text() -> None:
    task = TASKS["squad2"]
    record = {"question": "Where is [SEP]?", "context": "Before [SEP] and [MASK] after."}
    example = task.from_record(record, 7, "input row 8")
    for mode in ("google", "hf"):
        tokenizer = Tokenizer.load(VOCABULARY, mode=mode)
        (feature,) = task.features(example, 0, tokenizer, 384)
        assert [i for i in feature.input_ids if i < 5 and i != 1] == [2, 3, 3]
        assert set(feature.targets) == {"p_mask"}
    assert (example.id, example.label) == ("7", None)


# White space; signs that the vocabulary's rules drop; an accent alone.
BLANK = ("", " ", " \t\n\u00a0\u3000", "\u200b", "\ufeff", "\u00ad\u2060", "\x00\x07", "\u0301")


@pytest.mark.parametrize("context", BLANK)
@pytest.mark.parametrize("name", ["squad1", "squad2"])
def test_a_context_without_a_word_has_a_window_and_no_answer(name: str, context: str) -> None:
    task = TASKS[name]
    example = task.from_record({"id": "q", "question": "Where?", "context": context}, 0, "row 1")
    features = task.features(example, 0, TOKENIZERS[True], 64)
    assert len(features) == 1
    output = _random_outputs(features, np.random.default_rng(0))[0]
    found = task.predictions([example], features, [output | {"cls_logits": np.float32(-1)}])
    text = found["q"]
    assert text == "" or (text in context and not text.isspace())
    assert (found.starts["q"] is None) == (found.probabilities["q"] is None) == (text == "")


# ------------------------------------------------------------------------------------- predictions


def _outputs_v1(raw: dict) -> list[dict]:
    rows = zip(raw["v1_start"], raw["v1_end"], strict=True)
    return [{"start_logits": start, "end_logits": end} for start, end in rows]


def _outputs_v2(raw: dict) -> list[dict]:
    names = {f"{x}_top_{y}": f"{x}_{y}" for x in ("start", "end") for y in ("log_probs", "index")}
    names["cls_logits"] = "cls_logits"
    return [
        {ours: raw[f"v2_{theirs}"][i] for theirs, ours in names.items()}
        for i in range(len(raw["v2_cls_logits"]))
    ]


def _assert_same_nbest(found: dict, wanted: dict) -> None:
    for question, answers in found.items():
        assert [a["text"] for a in answers] == [a["text"] for a in wanted[question]]
        for key in ("probability", "start_log_prob", "end_log_prob"):
            theirs = [a[key] for a in wanted[question]]
            np.testing.assert_allclose([a[key] for a in answers], theirs, rtol=1e-12)


def _assert_answers_start_where_said(found: SpanPredictions, examples: list[RawExample]) -> None:
    for example in examples:
        best, start = found.best[example.id], found.starts[example.id]
        if start is None:
            assert best == ""
        else:
            assert best
            assert example.texts[1][start : start + len(best)] == best, example.id


# To the original's made-up outputs the 20 likeliest starts and ends of this question are all in the
# padding; it then answers with the word "empty". For predict we search on, in the context "A".
GIVEN_UP = "dev-p08-q0"


def test_predictions_of_v1_equal_the_originals(
    golden: Path, runs: list[dict], tmp_path: Path
) -> None:
    task, examples = _task(1, runs[1]), _kept(golden, runs[1])
    outputs = _outputs_v1(np.load(golden / "raw_results.npz"))
    found = task.predictions(examples, _features(task, examples, runs[1]), outputs)
    wanted = json.loads((golden / "eval_v1.json").read_text())
    theirs = {e.id: wanted["predictions"][e.id] for e in examples}
    assert found == theirs
    assert found[GIVEN_UP] == "empty"
    _assert_same_nbest(found.nbest, wanted["nbest"])
    searching = dataclasses.replace(task, searches_on=True)
    all_found = searching.predictions(examples, _features(task, examples, runs[1]), outputs)
    assert all_found == theirs | {GIVEN_UP: "A"}
    _assert_answers_start_where_said(all_found, examples)
    files = task.write_predictions(tmp_path / "new", examples, found)
    assert [file.name for file in files] == ["predictions.json", "nbest_predictions.json"]
    assert [json.loads(file.read_text()) for file in files] == [found, found.nbest]


def test_predictions_of_v2_equal_the_originals(
    golden: Path, runs: list[dict], tmp_path: Path
) -> None:
    task, examples = _task(3, runs[3]), _kept(golden, runs[3])
    features = _features(task, examples, runs[3])
    outputs = _outputs_v2(np.load(golden / "raw_results.npz"))
    found = task.predictions(examples, features, outputs)
    wanted = json.loads((golden / "eval_v2.json").read_text())
    first = wanted["first_pass"]
    assert found.best == {e.id: first["predictions"][e.id] for e in examples}
    assert found.null_odds == {e.id: first["null_odds"][e.id] for e in examples}
    _assert_same_nbest(found.nbest, first["nbest"])
    _assert_answers_start_where_said(found, examples)

    # The original blanks at its threshold, we above it as the official script: one question here.
    threshold = wanted["evaluate_v2"]["null_score_diff_threshold"]
    at = dataclasses.replace(task, null_threshold=threshold).predictions(
        examples, features, outputs
    )
    theirs = wanted["final_predictions"]
    (only,) = (e.id for e in examples if at[e.id] != theirs[e.id])
    assert (found.null_odds[only], theirs[only], at[only]) == (threshold, "", found.best[only])

    files = task.write_predictions(tmp_path, examples, found)
    assert [f.stem for f in files] == ["predictions", "nbest_predictions", "null_odds"]
    assert json.loads(files[2].read_text()) == found.null_odds


def test_float32_outputs_without_padding_give_the_same_answer() -> None:
    task = TASKS["squad1"]
    example = task.from_record({"question": "Where?", "context": CONTEXT}, 0, "row 1")
    (feature,) = task.features(example, 0, TOKENIZERS[True], 64)
    length = len(feature.input_ids)
    output = {f"{x}_logits": np.linspace(0, 1, length, dtype=np.float32) for x in ("start", "end")}
    first = feature.extra["passage_start"]
    start, end = CONTEXT.index("Switz"), CONTEXT.index(",")
    output["start_logits"][first + list(feature.extra["starts"]).index(start)] = 9
    output["end_logits"][first + list(feature.extra["ends"]).index(end)] = 9
    predictions = task.predictions([example], [feature], [output])
    assert predictions == {"0": "Switzerland"}
    assert predictions.null_odds is None
    assert predictions.starts == {"0": start}
    shorter = dataclasses.replace(task, max_answer_length=1)
    assert shorter.predictions([example], [feature], [output]) != {"0": "Switzerland"}


def _random_outputs(features: list, random: np.random.Generator) -> list[dict]:
    """What either head might say, at random, of rows without padding."""
    outputs = []
    for feature in features:
        length = len(feature.input_ids)
        places = random.permutation(max(length, 5))[:5]
        outputs.append(
            {
                "start_logits": random.normal(size=length),
                "end_logits": random.normal(size=length),
                "start_log_probs": -np.sort(random.exponential(size=5)),
                "start_index": places,
                "end_log_probs": -random.exponential(size=25),
                "end_index": random.integers(0, length, 25),
                "cls_logits": np.float32(random.normal()),
            }
        )
    return outputs


@pytest.mark.parametrize("name", ["squad1", "squad2"])
def test_answers_of_real_contexts_stand_where_they_are_said_to(shared: Path, name: str) -> None:
    task = TASKS[name]
    examples = task.examples("dev", shared / "data" / "squad")[::5]
    assert len(examples) > 1000
    features = _features(task, examples, {"do_lower_case": True, "max_seq_length": 384})
    found = task.predictions(
        examples, features, _random_outputs(features, np.random.default_rng(1))
    )
    _assert_answers_start_where_said(found, examples)
    assert all(task.head == "span_v2" or found[example.id] for example in examples)
    unanswered = {e.id for e in examples if not found[e.id]}
    none = {q for q, odds in (found.null_odds or {}).items() if odds > 0 or not found.best[q]}
    assert unanswered == none


@given(st.text(max_size=40), st.sampled_from(["squad1", "squad2"]), st.integers(0, 99))
def test_an_answer_to_any_text_stands_where_it_is_said_to(
    context: str, name: str, seed: int
) -> None:
    task = TASKS[name]
    example = task.from_record({"question": "Why?", "context": context}, 0, "row 1")
    for tokenizer in TOKENIZERS.values():
        features = task.features(example, 0, tokenizer, 32)
        outputs = _random_outputs(features, np.random.default_rng(seed))
        found = task.predictions([example], features, outputs)
        _assert_answers_start_where_said(found, [example])
        words = [a["text"] for a in found.nbest["0"] if a["text"]]
        assert bool(words) == bool(found.best["0"])
        if name == "squad1" and tokenizer.encode(context.strip(), parse_special=False).ids:
            assert found["0"]


def _certain_of(task: SquadTask, feature, pieces: tuple[int, int]) -> dict:
    """Outputs of a head that is certain of the span of these pieces of the passage."""
    start, end = (feature.extra["passage_start"] + piece for piece in pieces)
    logits = {name: np.zeros(len(feature.input_ids)) for name in ("start_logits", "end_logits")}
    logits["start_logits"][start] = logits["end_logits"][end] = 9
    return logits | {
        "start_log_probs": np.array([-0.1, -5, -5, -5, -5]),
        "start_index": np.array([start, 0, 1, 2, 3]),
        "end_log_probs": np.array([-0.1, -5, -5, -5, -5] * 5),
        "end_index": np.tile(np.arange(end, end + 5), 5),
        "cls_logits": np.float32(-3),
    }


@pytest.mark.parametrize("name", ["squad1", "squad2"])
def test_a_marker_alone_is_never_the_answer(name: str) -> None:
    """Before the first character it is that, as in the original; later it is white space."""
    task = TASKS[name]
    for context, piece, wanted in (('"Oz" is a film.', 0, '"'), ("He saw (a film)", 2, None)):
        record = {"id": "q", "question": "What is it?", "context": context}
        example = task.from_record(record, 0, "row 1")
        (feature,) = task.features(example, 0, TOKENIZERS[True], 64)
        pieces = TOKENIZERS[True].encode(context).tokens
        assert pieces[piece] == MARKER
        found = task.predictions([example], [feature], [_certain_of(task, feature, (piece, piece))])
        first = found.nbest["q"][0]
        assert first["text"] == (wanted or "")
        assert wanted is None or found["q"] == wanted
        assert found["q"]
        assert found.probabilities["q"] == (
            first["probability"] if wanted else found.nbest["q"][1]["probability"]
        )
        _assert_answers_start_where_said(found, [example])


def test_predict_answers_where_the_likeliest_places_are_all_in_the_question() -> None:
    task = dataclasses.replace(TASKS["squad1"], searches_on=True)
    record = {"id": "q", "question": "where " * 40, "context": "Rome"}
    example = task.from_record(record, 0, "row 1")
    (feature,) = task.features(example, 0, TOKENIZERS[True], 64)
    logits = -np.arange(len(feature.input_ids), dtype=float)
    found = task.predictions([example], [feature], [{"start_logits": logits, "end_logits": logits}])
    assert (found["q"], found.starts["q"]) == ("R", 0)  # the piece that is nearest to the question


# ------------------------------------------------------------------------------------------ scores


def test_pairs_score_as_the_originals_functions(golden: Path) -> None:
    for pair in json.loads((golden / "answer_pairs.json").read_text()):
        texts = pair["prediction"], pair["ground_truth"]
        assert (
            [normalize_answer(x) for x in texts] == pair["normalized_v1"] == pair["normalized_v2"]
        )
        assert exact_match(*texts) == pair["exact_v1"] == bool(pair["exact_v2"])
        assert (f1_v1(*texts), f1_v2(*texts)) == pytest.approx((pair["f1_v1"], pair["f1_v2"]))


def test_scores_equal_the_originals_of_v1(golden: Path) -> None:
    wanted = json.loads((golden / "eval_v1.json").read_text())
    examples = TASKS["squad1"].examples("dev", golden / "dev-v1.1.json")
    cases = [wanted, wanted["two_checkpoints"], *wanted["variants"].values()]
    assert len(cases) == 6
    for case in cases:
        scores = TASKS["squad1"].metrics(examples, case["predictions"])
        assert {name: scores[name] for name in case["evaluate_v1"]} == case["evaluate_v1"]
        assert scores["exact"] == scores["exact_match"]


def test_scores_equal_the_official_ones_of_v2(golden: Path) -> None:
    wanted = json.loads((golden / "eval_v2.json").read_text())
    examples = TASKS["squad2"].examples("dev", golden / "dev-v2.0.json")
    golds = {example.id: example.extra["answers"] for example in examples}
    for name, case in wanted["official_style"].items():
        first = wanted["first_pass"]
        given = first["predictions"] if "first" in name else wanted["final_predictions"]
        predictions, odds = case.get("predictions", given), case.get("na_probs", first["null_odds"])
        if name == "all_empty":
            predictions, odds = dict.fromkeys(golds, ""), dict.fromkeys(golds, 0.0)
        scores = score_v2(golds, predictions, odds, case["na_prob_thresh"])
        # Python's sum adds floats more exactly from 3.12 on.
        assert scores == pytest.approx(case["result"], rel=1e-12), name
        assert question_scores(golds, predictions) == (case["exact_raw"], case["f1_raw"])


def test_metrics_of_squad2_are_at_the_threshold_and_the_tuned_ones_apart(
    golden: Path, runs: list[dict]
) -> None:
    task, examples = _task(3, runs[3]), _kept(golden, runs[3])
    features = _features(task, examples, runs[3])
    outputs = _outputs_v2(np.load(golden / "raw_results.npz"))
    predictions = task.predictions(examples, features, outputs)
    # Where an answer or a prediction is "the" alone, the official script counts it as none in one
    # place and as one in another: not here.
    clear = [
        example
        for example in examples
        if all(map(normalize_answer, [*example.extra["answers"], predictions.best[example.id]]))
    ]
    assert len(clear) > 50
    scores = task.metrics(clear, predictions)
    # The predictions as they stand in predictions.json score the same, but cannot be tuned.
    plain = task.metrics(clear, dict(predictions))
    assert plain == {name: x for name, x in scores.items() if name not in TUNED}
    tuned = dataclasses.replace(task, null_threshold=scores["best_f1_thresh"])
    again = tuned.metrics(clear, tuned.predictions(examples, features, outputs))
    assert again["f1"] == pytest.approx(scores["best_f1"])
    assert again["f1"] > scores["f1"] + 10


FILES = {  # name below data/squad: task, split, questions, without an answer
    "dev-v1.1.json": ("squad1", "dev", 10_570, 0),
    "train-v1.1.subset-du2017test.json": ("squad1", "train", 11_877, 0),
    "xquad.en.json": ("squad1", "dev", 1_190, 0),
    "dev-v2.0.cs224n-half.json": ("squad2", "dev", 6_078, 3_168),
    "train-v2.0.first10.json": ("squad2", "train", 4_719, 348),
    "test-v2.0.cs224n.json": ("squad2", "test", 5_915, 0),
}


def _by_rule(rule: str, questions: list[dict]) -> tuple[dict[str, str], dict[str, float] | None]:
    """The predictions that expected_scores.json was made from; see data/README.md."""
    predictions, odds = {}, {}
    for q in questions:
        texts = [answer["text"] for answer in q["answers"]]
        first = texts[0] if texts else ""
        plausible = [answer["text"] for answer in q.get("plausible_answers", [])]
        predictions[q["id"]] = {
            "first_gold": lambda t=texts, f=first: f,
            "last_gold": lambda t=texts: t[-1] if t else "",
            "first3ctx": lambda q=q: " ".join(q["context"].split()[:3]),
            "gold_minus_last": lambda f=first: " ".join(f.split()[:-1]) or f,
            "the_upper": lambda f=first: f"The {f.upper()}!" if f else "",
            "empty": lambda: "",
            "plausible": lambda t=texts, p=plausible: [*t, *p, ""][0],
        }[rule.split("+")[0]]()
        length = len(q["question"])
        good = 0.9 if not texts and length % 3 else 0.1
        odds[q["id"]] = good if rule.endswith("na_good") else length % 10 / 10
    return predictions, odds if "+" in rule else None


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("test")])
def test_scores_of_real_files_equal_the_official_evaluators(shared: Path, name: str) -> None:
    folder = shared / "data" / "squad"
    data = json.loads((folder / name).read_text())["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    questions = [q | {"context": p["context"]} for p in paragraphs for q in p["qas"]]
    golds = {q["id"]: [answer["text"] for answer in q["answers"]] for q in questions}
    expected = json.loads((folder / "expected_scores.json").read_text())[name]
    assert len(expected) >= 5
    for rule, wanted in expected.items():
        assert score_v2(golds, *_by_rule(rule, questions)) == pytest.approx(wanted), rule
    predictions, _ = _by_rule("first_gold", questions)
    if "v1" in name:
        assert score_v1(golds, predictions) == {"exact_match": 100, "f1": 100}


# -------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize("name", FILES)
def test_every_answer_of_a_real_file_can_be_read_back_from_its_features(
    shared: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    kind, split, count, unanswerable = FILES[name]
    task = TASKS[kind]
    examples = task.examples(split, shared / "data" / "squad" / name)
    assert len(examples) == count
    assert sum(example.label == "" for example in examples) == unanswerable
    assert (examples[0].label is None) == (split == "test")
    assert capsys.readouterr().err == ""  # every answer is at its offset
    wider = 0
    sample = [i for i in range(len(examples)) if i // 5 % 40 == 0]  # a passage has about five
    for index in sample:
        example = examples[index]
        features = task.features(example, index, TOKENIZERS[True], 256)
        assert all(len(feature.input_ids) <= 256 for feature in features)
        if not example.label:
            continue
        found = [text for feature in features for text in _answers(feature, example)]
        assert found, example.id
        for text in found:
            # A piece may be wider than the answer: 17 for 7, Japanese for Japan.
            assert example.label.strip() in text
            wider += not exact_match(text, example.label)
    assert wider <= len(sample) / 100


def test_folder_of_real_files_serves_each_split(shared: Path) -> None:
    folder = shared / "data" / "squad"
    splits = [("squad1", "train"), ("squad1", "dev"), ("squad2", "train"), ("squad2", "dev")]
    counts = [len(TASKS[task].examples(split, folder)) for task, split in splits]
    assert counts == [11_877, 10_570, 4_719, 6_078]
    with pytest.raises(UserError, match=r"holds no test-v1.1.json"):
        TASKS["squad1"].examples("test", folder)


# ------------------------------------------------------------------------------------------ errors


def _question(identity: str = "q0", **changes) -> dict:
    answer = {"text": "Switzerland", "answer_start": CONTEXT.index("Switz")}
    return {"id": identity, "question": "Where?", "answers": [answer]} | changes


def _write(path: Path, *questions: object) -> Path:
    paragraph = {"context": CONTEXT, "qas": list(questions)}
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    return path


def _misplaced(identity: str, text: str = "Switzerland", start: int = 3) -> dict:
    return _question(identity, answers=[{"text": text, "answer_start": start}])


def test_answers_that_are_not_at_their_offset_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = [_misplaced(f"w{i}") for i in range(4)]
    wrong += [
        _misplaced("far", "Alps.", 999),
        _misplaced("before", "Alps.", -1),
        _misplaced("no", "Rome"),
    ]
    questions = [_question("right"), *wrong]
    names = "7 of 8 questions have no answer at its offset: w0, w1, w2, w3, far and 2 more;"
    with pytest.raises(UserError, match=names):
        TASKS["squad1"].examples("train", _write(tmp_path / "train-v1.1.json", *questions))
    # For the score an offset does not matter: nothing is left out.
    examples = TASKS["squad1"].examples("dev", _write(tmp_path / "dev-v1.1.json", *questions))
    assert names in capsys.readouterr().err
    assert len(examples) == 8
    assert [e.id for e in examples if e.extra["answer"] is None] == [q["id"] for q in wrong]
    predictions = {example.id: example.label for example in examples}
    assert TASKS["squad1"].metrics(examples, predictions)["f1"] == 100


def test_answer_is_the_first_that_is_at_its_offset(tmp_path: Path) -> None:
    right = {"text": "the Alps", "answer_start": CONTEXT.index("the Alps")}
    question = _question(answers=[{"text": "Zürich", "answer_start": 5}, right])
    (example,) = TASKS["squad1"].examples("dev", _write(tmp_path / "dev-v1.1.json", question))
    (feature,) = TASKS["squad1"].features(example, 0, TOKENIZERS[True], 64)
    assert _answers(feature, example) == ["the Alps"]
    assert example.label == "Zürich"


WRONG = {  # task, split, the file's questions, what the error says
    "no question": ("squad1", "dev", [], "holds no question"),
    "no id": ("squad1", "dev", [{"question": "Where?"}], r"qas\[0\]: 'id' is missing"),
    "an id twice": ("squad1", "dev", [_question(), _question()], r"qas\[1\].* the id 'q0' too"),
    "a number": ("squad1", "dev", [_question(question=3)], "'question' is 3; .* has a string"),
    "no object": ("squad1", "dev", ["Where?"], r"qas\[0\] is not an object"),
    "a text for a place": (
        "squad2",
        "dev",
        [_question(answers=[{"text": "Alps", "answer_start": "7"}])],
        "'answer_start' is \"7\"; .* has a whole number",
    ),
    "no answers": ("squad2", "train", [_question(answers=[])], "has no answers to train on"),
    "no answer in v1.1": (
        "squad1",
        "dev",
        [_question(), _question("none", answers=[], is_impossible=True)],
        "1 of 2 questions have no answer: none; squad1 answers each, use squad2",
    ),
    "both": ("squad2", "dev", [_question(is_impossible=True)], "q0 has answers and is_impossible"),
    "neither": (
        "squad2",
        "dev",
        [_question(), _question("q1", answers=[], is_impossible=False)],
        "q1 has no answers and is_impossible False",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_questions_are_named(tmp_path: Path, case: str) -> None:
    task, split, questions, message = WRONG[case]
    path = _write(tmp_path / "file.json", *questions)
    with pytest.raises(UserError, match=message):
        TASKS[task].examples(split, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [', "is not JSON: Expecting value: line 1 column 11"),
        (b'{"version": "1.1"}', "'data' is missing"),
        (b"[]", "is not an object with 'data'"),
        (b"", "is empty"),
        (b'{"data": "\xff"}', r"invalid UTF-8 at byte 10 \(0xff\)"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "dev-v1.1.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        TASKS["squad1"].examples("dev", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_places_are_named(tmp_path: Path) -> None:
    squad = TASKS["squad1"]
    _write(tmp_path / "train-v1.1.json", _question())
    for split, data, message in (
        ("dev", tmp_path, "holds no dev-v1.1.json; it is at https://"),
        ("dev", tmp_path / "train-v1.1.json", "is not the dev split by its name"),
        ("dev", tmp_path / "none", "does not exist"),
        ("valid", tmp_path, "no split 'valid'; known: train, dev, test"),
    ):
        with pytest.raises(UserError, match=message):
            squad.examples(split, data)
    for name in ("train-v2.0.a.json", "train-v2.0.b.json"):
        _write(tmp_path / name, _question())
    with pytest.raises(UserError, match=r"holds train-v2.0.a.json, train-v2.0.b.json; name one"):
        TASKS["squad2"].examples("train", tmp_path)


def test_length_without_room_for_a_context_is_an_error() -> None:
    task = TASKS["squad1"]
    example = task.from_record({"question": "where " * 40, "context": CONTEXT}, 0, "row 1")
    task.features(example, 0, TOKENIZERS[True], 44)
    with pytest.raises(UserError, match=r"max_seq_length 43 leaves no room .* of 40 pieces"):
        task.features(example, 0, TOKENIZERS[True], 43)
    with pytest.raises(UserError, match="doc_stride is 0; it must be at least 1"):
        dataclasses.replace(task, doc_stride=0)


def test_questions_without_answers_cannot_be_scored(tmp_path: Path) -> None:
    examples = TASKS["squad2"].examples("test", _write(tmp_path / "x", _question(answers=[])))
    with pytest.raises(UserError, match="1 of 1 questions have no answers to compare with: q0"):
        TASKS["squad2"].metrics(examples, {"q0": ""})


def test_missing_prediction_is_wrong_and_counts() -> None:
    golds = {"a": ["Alps"], "b": [], "c": ["Rome"]}
    scores = score_v2(golds, {"a": "the alps", "b": ""}, {"a": -1, "b": 1, "c": 0}, 0.0)
    assert (scores["exact"], scores["total"]) == (pytest.approx(200 / 3), 3)
    assert (scores["HasAns_exact"], scores["NoAns_exact"]) == (50, 100)


def test_tfds_gives_the_same_examples_as_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [_question(), _question("q1", answers=[], is_impossible=True)]
    expected = TASKS["squad2"].examples("dev", _write(tmp_path / "dev-v2.0.json", *questions))

    def rows(name: str, split: str):
        assert (name, split) == ("squad/v2.0", "validation")
        for number, q in enumerate(questions):
            answers = {
                "text": [a["text"].encode() for a in q["answers"]],
                "answer_start": np.array([a["answer_start"] for a in q["answers"]], np.int32),
            }
            yield f"TFDS {name} [{number}]", {**q, "context": CONTEXT, "answers": answers}

    monkeypatch.setattr(squad_reader, "tfds_rows", rows)
    assert TASKS["squad2"].examples("dev", "tfds") == expected
