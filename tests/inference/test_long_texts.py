# SPDX-License-Identifier: Apache-2.0
"""Texts longer than a row: read in windows, whose logits or vectors are averaged, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.data.special_pieces import ALBERT_IDS, CLS_ID, SEP_ID
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.api import Albert, load
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.predict import predict
from albert_jax.tasks import Features, find_task
from albert_jax.tasks.collate import as_rows
from albert_jax.tasks.long_texts import window_parts
from albert_jax.training.finetune import finetune
from albert_jax.training.finetune_setup import set_up
from albert_jax.utils.errors import UserError
from tests.helpers.paths import VOCABULARY
from tests.helpers.toy_task import toy_model

ROW = 32
TOKENIZER = Tokenizer.load(VOCABULARY)
WORDS = ("the", "value", "of", "a", "list", "is", "open", "file", "string", "return")
# Other batch shapes sum in another order: two float32 sums of 32 tokens differ by 1e-7.
CLOSE = {"atol": 2e-6, "rtol": 0}


def text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def rows_by_hand(first: str, second: str | None, stride: int) -> list[tuple[list[int], list[int]]]:
    """The windows of a text, or of the second one beside the first: ids, and the text's tokens."""
    parts = TOKENIZER.encode_ids([first, second] if second else [first])
    long, before = parts[-1], [CLS_ID, *(parts[0] + [SEP_ID] if second else [])]
    room = ROW - len(before) - 1
    found, start = [], 0
    while True:
        part = long[start : start + room]
        found.append(([*before, *part, SEP_ID], part))
        if start + room >= len(long):
            return found
        start += stride


def logits_by_hand(path: Path, rows: list[tuple[list[int], list[int]]], first: int) -> np.ndarray:
    """The mean of the windows' logits, each computed alone, by their tokens of text."""
    fine_tuned = load_fine_tuned(path)
    found = []
    for ids, _ in rows:
        segments = [int(first and i >= first) for i in range(len(ids))]
        (output,) = fine_tuned(as_rows([Features(0, ids, segments)]))
        found.append(output["logits"])
    return np.average(found, axis=0, weights=[len(part) for _, part in rows])


@pytest.mark.parametrize("task", ["single", "stsb"])
def test_an_answer_is_the_mean_of_the_logits_of_single_windows(model, task: str) -> None:
    names = find_task(task).text_columns
    first, second = ("the open list", text(90)) if len(names) == 2 else (text(90), None)
    rows = rows_by_hand(first, second, stride=10)
    assert len(rows) > 5
    before = len(TOKENIZER.encode_ids([first])[0]) + 2 if second else 0
    wanted = logits_by_hand(model(task), rows, before)
    record = dict(zip(names, filter(None, (first, second)), strict=True))
    (answer,) = predict(model(task), [record], long="windows", stride=10)
    assert answer["windows"] == len(rows)
    assert "truncated" not in answer
    if find_task(task).head == "regression":
        np.testing.assert_allclose(answer["prediction"], wanted[0], **CLOSE)
    else:
        shares = np.exp(wanted) / np.exp(wanted).sum()
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, **CLOSE)


def test_the_longer_text_of_a_pair_is_windowed_wherever_it_stands(model) -> None:
    path, short = model("stsb"), "the open list"
    long = text(60)
    records = [
        {"sentence1": long, "sentence2": short},
        {"sentence1": short, "sentence2": long},
    ]
    found = list(predict(path, records, long="windows"))
    assert found[0]["windows"] == found[1]["windows"] > 2
    # Both halves have over 15 tokens: neither leaves the other half a row.
    with pytest.raises(UserError, match=r"input 0: the shorter text of the pair has 24 tokens"):
        list(predict(path, [{"sentence1": text(24), "sentence2": long}], long="windows"))


def test_short_texts_are_answered_as_before_and_windows_are_said_for_none(model) -> None:
    records = [{"text": text(n)} for n in (1, 9, 30)]
    whole, in_windows = (
        [a.to_json() for a in predict(model("single"), records, long=long)]
        for long in ("cut", "windows")
    )
    assert whole == in_windows
    assert not any("windows" in answer for answer in in_windows)


def test_windows_of_any_number_take_the_same_few_programs(model) -> None:
    fine_tuned = load_fine_tuned(model("single"), long="windows")
    fine_tuned.outputs._apply.clear_cache()
    from albert_jax.inference import predict as module  # whose parts the command puts together

    rows = [(f"input {n}", {"text": text(20 + 15 * n)}) for n in range(40)]
    count = module._Count()
    answers = list(module._answers(fine_tuned, [rows], count, skip_bad=False))
    assert len({answer.to_json().get("windows", 1) for answer in answers}) > 30
    # Lengths 8, 16, 24, 32 or fewer, each of a row, eight, or a full batch.
    assert fine_tuned.outputs._apply._cache_size() <= 12


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents of 3,000 words, and short ones."""
    folder = tmp_path_factory.mktemp("documents")
    for split, count in (("train", 8), ("dev", 4)):
        lines = [
            json.dumps({"text": text(3000 if n == 0 else 12, n), "label": ("no", "yes")[n % 2]})
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_documents_of_3000_words_are_predicted_and_evaluated_whole(
    model, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = ["--model", model("single"), "--long", "windows", "--stride", 30]
    given = ["--input", documents / "dev.jsonl", "--output", answers]
    assert cli.main(["predict", *map(str, arguments + given)]) == 0
    pieces = len(TOKENIZER.encode_ids([text(3000, 0)])[0])
    windows = -(-(pieces - 30) // 30) + 1
    first, *others = [json.loads(line) for line in answers.read_text().splitlines()]
    assert first["windows"] == windows >= 100
    assert not any("windows" in x or "truncated" in x for x in others)
    said = f"1 of 4 inputs was longer than 32 tokens and read in {windows} windows"
    assert said in capsys.readouterr().err
    found = evaluate(
        None, model("single"), documents, long="windows", stride=30, output=tmp_path / "official"
    )
    assert found.truncated == 0
    official = (tmp_path / "official" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in official] == [
        x["prediction"] for x in (first, *others)
    ]


def test_a_long_text_can_be_refused_and_the_next_answered(
    model, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["predict", "--model", model("single"), "--long", "refuse"]
    arguments += ["--input", documents / "dev.jsonl", "--output", tmp_path / "answers.jsonl"]
    assert cli.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "dev.jsonl row 1: the text is " in said
    assert (
        "too long for a row of 32, and --long is refuse; cut leaves out the end, windows " in said
    )
    assert cli.main([*map(str, arguments), "--skip-bad"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert ["error" in row for row in rows] == [True, False, False, False]
    with pytest.raises(UserError, match=r"dev.jsonl row 1: the text is"):
        evaluate(None, model("single"), documents, long="refuse", output=tmp_path / "official")


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("race", {"long": "windows"}, "whose options share one passage"),
        (
            "single",
            {"stride": 4},
            "of classification, multi_label, regression; leave it out, or give long='windows'",
        ),
        ("single", {"long": "windows", "stride": 0}, "stride 0 must be 1 to 30"),
        ("single", {"long": "windows", "stride": 31}, "must be 1 to 30"),
        ("squad1", {"long": "windows", "stride": 4}, "leave it out"),
        ("squad2", {"long": "windows"}, "squad2 always reads long texts whole, .* leave it out"),
        ("token-classification", {"long": "windows"}, "always reads long texts whole"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(
    model, task: str, settings: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        predict(model(task), [], **settings)


def config_of(documents: Path, workdir: Path) -> FinetuneConfig:
    return FinetuneConfig(
        task="single",
        model=str(toy_model(workdir / "base")),
        data=str(documents),
        workdir=str(workdir / "run"),
        long="windows",
        stride=25,
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
        train=TrainConfig(steps=2, batch_size=4, devices=1, eval_every=0, save_every=0, keep=2),
    )


def test_fine_tuning_makes_a_training_row_of_each_window(documents: Path, tmp_path: Path) -> None:
    prepared = set_up(config_of(documents, tmp_path))
    pieces = len(TOKENIZER.encode_ids([text(3000, 0)])[0])
    windows = 1 + -(-(pieces - 30) // 25)
    assert len(prepared.train.rows) == windows + 7
    assert {int(row.targets["labels"]) for row in prepared.train.rows[:windows]} == {0}
    assert prepared.dev.windows == [windows]
    assert prepared.train.cuts == {}


@pytest.mark.slow
def test_a_model_fine_tuned_on_windows_answers_by_them(documents: Path, tmp_path: Path) -> None:
    config = config_of(documents, tmp_path)
    results = finetune(config)
    path = tmp_path / "run" / "model"
    head = load_model(path).head
    assert (head.long, head.stride) == ("windows", 25)
    assert load_fine_tuned(path).long.how == "windows"
    found = evaluate(None, path, documents, output=tmp_path / "official")
    assert found.truncated == 0
    assert found.metrics["accuracy"] == results.runs[0].best.metrics["accuracy"]
    # What the user asks for goes before what the model was made with.
    assert evaluate(None, path, documents, long="cut", output=tmp_path / "cut").truncated == 1


# ------------------------------------------------------------------------------------------ vectors


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> Albert:
    return load(toy_model(tmp_path_factory.mktemp("models") / "base"))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_long_texts_vector_is_the_mean_of_its_windows(albert: Albert, pool: str) -> None:
    texts = ["the list", text(200), "", text(75, 3)]
    found = albert.encode(texts, pool=pool, long="windows", stride=12)
    assert found.sequence is None
    for row, each in enumerate(texts):
        (ids,) = TOKENIZER.encode_ids([each])
        parts = [ids[start : start + 30] for start in range(0, max(len(ids) - 30, 0) + 12, 12)]
        parts = parts[: 1 + max(0, -(-(len(ids) - 30) // 12))]
        outputs = []
        for part in parts:
            x_SH = albert.forward(np.array([[CLS_ID, *part, SEP_ID]])).sequence[0]
            outputs.append(x_SH[0] if pool == "cls" else x_SH.mean(axis=0))
        wanted = np.average(outputs, axis=0, weights=[max(len(part), 1) for part in parts])
        np.testing.assert_allclose(found.pooled[row], wanted, **CLOSE)
        assert found.mask[row].sum() == len(ids) + 2


def test_windows_have_the_special_tokens_of_the_vocabulary(
    albert: Albert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WordPiece's [CLS] and [SEP] are 101 and 102. A text of one window is as if it were cut."""
    monkeypatch.setattr(albert, "_special", ALBERT_IDS._replace(cls=101, sep=102))
    one = albert.encode(["the list"], pool="mean", long="windows").pooled
    np.testing.assert_allclose(one, albert.encode(["the list"], pool="mean").pooled, **CLOSE)


def test_encode_refuses_long_texts_unless_asked_to_cut_or_to_window_them(albert: Albert) -> None:
    long = text(60)
    with pytest.raises(UserError, match="more than the model's 32"):
        albert.encode([long])
    cut = albert.encode([long], long="cut", pool="mean")
    np.testing.assert_array_equal(
        cut.pooled, albert.encode([long], truncate=True, pool="mean").pooled
    )
    with pytest.raises(UserError, match="gives one vector for a text"):
        albert.encode([long], long="windows")
    with pytest.raises(UserError, match="stride 3 is for long"):
        albert.encode([long], stride=3)
    with pytest.raises(UserError, match="must be 1 to 30"):
        albert.encode([long], pool="cls", long="windows", stride=31)
    with pytest.raises(UserError, match="give one of them"):
        albert.encode([long], truncate=True, long="windows", pool="cls")


def test_the_encode_command_takes_windows(albert: Albert, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(text(80) + "\nthe list\n")
    arguments = ["encode", albert.source, "--input", tmp_path / "texts.txt", "--pool", "mean"]
    arguments += ["--long", "windows", "--stride", 9, "--output", tmp_path / "v.npz"]
    assert cli.main([*map(str, arguments)]) == 0
    wanted = albert.encode([text(80), "the list"], pool="mean", long="windows", stride=9)
    with np.load(tmp_path / "v.npz") as file:
        np.testing.assert_array_equal(file["pooled"], wanted.pooled)


def test_the_encode_command_names_its_flags_and_its_texts(
    albert: Albert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        assert cli.main(["encode", str(albert.source), *arguments]) == 2
        return capsys.readouterr().err

    file = tmp_path / "texts.txt"
    file.write_text(f"the list\n\n{text(60)}\n")
    assert f"{file} row 3 '" in (error := told("--input", str(file), "--pool", "mean"))
    ways = "text, or cut it with --truncate, or read it all with --long windows and --pool mean\n"
    assert error.endswith(ways)
    assert "albert-jax: text 2 '" in told("the list", text(60))
    assert "--stride 5 is for --long windows;" in told("a", "--stride", "5")
    assert "give --pool mean or --pool cls" in told("a", "--long", "windows")
    assert "--layer 99 must be between" in told("a", "--layer", "99")
    with pytest.raises(UserError, match=r"^texts\[1\] .* truncate=True, .*long='windows'"):
        albert.encode(["the list", text(60)])


def test_windows_hold_every_token_and_the_last_ends_with_the_text() -> None:
    for length in (0, 1, 29, 30, 31, 61, 200):
        parts = window_parts(list(range(length)), 30, 11)
        assert {i for part in parts for i in part} == set(range(length))
        assert not length or parts[-1][-1] == length - 1
        assert len(parts) == (1 if length <= 30 else 1 + -(-(length - 30) // 11))
