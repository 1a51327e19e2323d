# SPDX-License-Identifier: Apache-2.0
"""Whole stories, from a user's first command to the answer: their pages' own commands, run with
what the pages take as given, and what each of them says to bad input."""

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import albert_jax
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.cli import main as cli
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.training.metrics import read_metrics
from benchmarks.compare_pipeline import compare
from tests.helpers.compressed import read_compressed, unpack
from tests.helpers.documents import run_page
from tests.helpers.fake_hub import FakeHub, fake_hub
from tests.helpers.fast_tokenizers import write_transformers_5
from tests.helpers.paths import DATA, REPOSITORY
from tests.helpers.toy_task import sentences, toy_data, toy_model

CLASSIFIER = DATA / "golden" / "transformers5_classifier"
TOKEN = "hf_secret"
CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: validation
    path: validation.parquet
  - split: test
    path: test.parquet
---
"""


# ------------------------------------------------------------------------------------ of the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback that commands in processes of their own ask, with empty caches."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    own = {"ALBERT_JAX_CACHE": "cache", "HF_HOME": "hf", "HF_DATASETS_CACHE": "datasets"}
    for name, folder in own.items():
        monkeypatch.setenv(name, str(tmp_path / "caches" / folder))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def add_data(hub: FakeHub, name: str, folder: Path) -> None:
    """Put a data set of the toy task on the hub, in Parquet with its card."""
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, which albert-jax[hf-data] installs")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    folder.mkdir()
    for split, count in (("train", 64), ("validation", 16), ("test", 16)):
        texts, labels = zip(*sentences(count, split), strict=True)
        columns = {"text": list(texts), "label": [int(label == "yes") for label in labels]}
        parquet.write_table(pa.table(columns), folder / f"{split}.parquet")
    (folder / "README.md").write_text(CARD)
    hub.add(f"datasets/{name}", folder)


@pytest.mark.extras
@pytest.mark.slow
def test_a_model_of_the_hub_is_fine_tuned_pushed_and_answers_by_its_new_name(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs datasets, which albert-jax[hf-data] installs")
    convert("mini", tmp_path / "mini-hf", to="hf")
    hub.add("albert/albert-base-v2", tmp_path / "mini-hf")
    add_data(hub, "cornell-movie-review-data/rotten_tomatoes", tmp_path / "data")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.may_write = TOKEN
    run_page(REPOSITORY / "docs" / "tutorials" / "hub.md", "story")
    assert hub.repositories["me/albert-reviews"].private
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [set(answer["probabilities"]) for answer in answers] == [{"neg", "pos"}] * 2


# --------------------------------------------------------------------------- with transformers 5


@pytest.fixture(scope="module")
def library() -> None:
    pytest.importorskip("tokenizers", reason="needs the tokenizers library")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as transformers 5 saves it: tokenizer.json alone."""
    folder = tmp_path_factory.mktemp("transformers5") / "classifier"
    shutil.copytree(CLASSIFIER, folder)
    settings = (folder / "tokenizer_config.json").read_bytes()
    files = unpack(DATA / "tokenizer", tmp_path_factory.mktemp("tokenizer"))
    write_transformers_5(files, folder)
    assert (folder / "tokenizer_config.json").read_bytes() == settings
    return folder


@pytest.mark.extras
def test_predict_answers_as_transformers_5s_pipeline(
    library: None, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lines of Python's documentation; float32 sums in another order differ by less."""
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path))
    kept = json.loads(read_compressed(CLASSIFIER / "answers.json"))
    assert Tokenizer.load(classifier).mode == "hf-fast"
    found = compare(str(classifier), kept["lines"], kept["answers"])
    assert (found.lines, found.labels) == (100, 0)
    assert found.most < 5e-6
    likeliest = {max(answer, key=lambda name: answer[name]) for answer in kept["answers"]}
    assert likeliest == {"bad", "good", "neither"}


@pytest.mark.extras
@pytest.mark.slow
def test_a_folder_of_transformers_5_is_fine_tuned_with_its_own_tokenizer(
    library: None, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(classifier, "theirs")
    toy_data(tmp_path / "reviews")
    shutil.copyfile("reviews/test.jsonl", "texts.jsonl")
    run_page(REPOSITORY / "docs" / "how-to" / "transformers.md", "story")
    theirs = Tokenizer.load("theirs")
    text = 'A well-known (and "quoted") list, isn\'t it?'
    for place in ("runs/reviews/model", "reviews-hf"):
        tokenizer = Tokenizer.load(place)
        assert tokenizer.mode == "hf-fast"
        assert tokenizer.encode(text) == theirs.encode(text)
    texts = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    ours = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    back = [answer.to_json() for answer in albert_jax.predict("reviews-hf", texts, task="single")]
    assert [answer["probabilities"] for answer in back] == [x["probabilities"] for x in ours]


# --------------------------------------------------------------------------- a table of one's own


def write_tickets(folder: Path) -> Path:
    """Write tables of three labels, of which one is rare, under odd names of columns."""
    rng = random.Random(0)
    words = {"question": "open", "complaint": "file", "praise": "string"}
    for split, count in (("train", 96), ("dev", 48)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Row no.", "What does it say?", "Kind (by hand)"])
            for number in range(count):
                label = rng.choices(list(words), (80, 16, 4))[0] if number > 2 else [*words][number]
                writer.writerow([number, f"the value, {words[label]}\nof it", label])
    return folder


@pytest.mark.slow
def test_weights_early_stopping_and_metric_of_a_csv_take_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = toy_model(tmp_path / "base")
    line = (
        f"finetune --task single --model {base} --data {write_tickets(tmp_path)} --metric macro_f1"
    )
    line += " --max-seq-length 16 --train.batch-size 16 --train.devices 1 --train.steps 40"
    line += " --train.eval-every 1 --early-stopping 2 --optimizer.learning-rate 1e-9 --json"
    columns = ["--texts", "What does it say?", "--label", "Kind (by hand)"]
    found = {}
    for name, weights in (("plain", []), ("weighted", ["--class-weights", "balanced"])):
        workdir = ["--workdir", str(tmp_path / name)]
        assert cli.main([*line.split(), *columns, *weights, *workdir]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    for results in found.values():
        (run,) = results["runs"]
        # A rate of next to nothing: nothing is better than the first evaluation.
        assert (run["ended"], run["best"]["step"], results["metric"]) == (
            "early_stopping", 1, "macro_f1"
        )  # fmt: skip
    first = {}
    for name in found:
        (file,) = (tmp_path / name).glob("seed-*/metrics.jsonl")
        first[name] = next(row["loss"] for row in read_metrics(file) if row["kind"] == "train")
    assert first["plain"] != pytest.approx(first["weighted"], rel=1e-3)


# ---------------------------------------------------------------------------------------- bad input


FINETUNE = "finetune --task single --data data --workdir run --max-seq-length 64"


def no_repository(hub: FakeHub, folder: Path) -> str:
    return "fill-mask me/none x"


def gated_repository(hub: FakeHub, folder: Path) -> str:
    hub.add("me/it", {"config.json": b"{}", "model.safetensors": b""})
    hub.repositories["me/it"].gated = True
    return f"{FINETUNE} --model me/it"


def private_repository(hub: FakeHub, folder: Path) -> str:
    hub.add("me/it", {"config.json": b"{}"})
    hub.repositories["me/it"].private = True
    return "predict --model me/it --input x.jsonl"


def offline(hub: FakeHub, folder: Path) -> str:
    hub.add("me/it", {"config.json": b"{}"})
    return "encode me/it x"


def no_data_set(hub: FakeHub, folder: Path) -> str:
    return f"{FINETUNE} --model mini --data hf:me/none"


def no_column(hub: FakeHub, folder: Path) -> str:
    add_data(hub, "me/texts", folder / "parquet")
    return f"{FINETUNE} --model mini --data hf:me/texts --texts review"


def no_column_of_csv(hub: FakeHub, folder: Path) -> str:
    (folder / "tickets").mkdir()
    write_tickets(folder / "tickets")
    return f"{FINETUNE} --model mini --data tickets --texts Text --label Kind"


def no_class(hub: FakeHub, folder: Path) -> str:
    return f"{FINETUNE} --model mini --class-weights maybe=2"


def another_tokenizer(hub: FakeHub, folder: Path) -> str:
    shutil.copytree(CLASSIFIER, folder / "theirs")
    bpe = {"model": {"type": "BPE", "vocab": {}, "merges": []}}
    (folder / "theirs" / "tokenizer.json").write_text(json.dumps(bpe))
    return f"{FINETUNE} --model theirs"


def no_login(hub: FakeHub, folder: Path) -> str:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    return f"{FINETUNE} --model mini --log wandb"


def windows_without_a_pool(hub: FakeHub, folder: Path) -> str:
    return "encode mini x --pool none --long windows"


def longer_rows(hub: FakeHub, folder: Path) -> str:
    return f"{FINETUNE} --model mini --max-seq-length 256"


@pytest.mark.extras
@pytest.mark.parametrize(
    ("situation", "told"),
    [
        (no_repository, "has no such repository, or it is private; check the name, or log in"),
        (gated_repository, "me/it is gated; accept its conditions at "),
        (private_repository, "has no such repository, or it is private; check the name, or log in"),
        (offline, "me/it is not on this disk, and "),
        (no_data_set, "hf:me/none cannot be read (DatasetNotFoundError: Dataset 'me/none' doesn't"),
        (no_column, "lacks the column 'review': expected 'review', 'label'; found 'text', 'label'"),
        (another_tokenizer, "tokenizer.json has a model of type BPE"),
        (no_login, "--log wandb has no login; run `wandb login`"),
        (no_column_of_csv, "lacks the columns 'Text', 'Kind'"),
        (no_class, "maybe"),  # and the classes that there are
        (windows_without_a_pool, "gives one vector for a text"),
        (
            longer_rows,
            "--max-seq-length 256 must be 8 to 128, the model's positions; give --max-seq",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(
    hub: FakeHub,
    situation: Callable[[FakeHub, Path], str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., object],
) -> None:
    toy_data(tmp_path / "data")
    line = situation(hub, tmp_path)
    env = {"HF_HUB_OFFLINE": "1"} if situation is offline else {}
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    env |= {"HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    ended = run_cli(*line.split(), cwd=tmp_path, env=env)
    assert (ended.rc, ended.stdout) == (2, ""), ended.stderr
    *others, last = ended.stderr.splitlines()
    assert last.startswith("albert-jax: "), ended.stderr
    assert told in last
    assert not others
    assert not (tmp_path / "run").exists()
