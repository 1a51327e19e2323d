# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from top to bottom, on a small random model instead of the released one."""

import html
import importlib.util
import json
import random
import re
import tarfile
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from albert_jax import AlbertConfig
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.model_export import export_model
from albert_jax.models.albert import AlbertForPretraining, init_params
from tests.helpers.paths import REPOSITORY, VOCABULARY

pytestmark = pytest.mark.timeout(1200)  # a minute each, where nothing else runs


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A random model as Google packs its own: albert_tiny.tar.gz with a TF1 checkpoint."""
    folder = tmp_path_factory.mktemp("released")
    config = AlbertConfig(
        vocab_size=8000,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    export_model(
        folder / "model",
        params=init_params(AlbertForPretraining(config), jax.random.key(0)),
        config=config,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        provenance={},
    )
    convert(folder / "model", folder / "albert_tiny", to="tf")
    with tarfile.open(folder / "albert_tiny.tar.gz", "w:gz") as tar:
        tar.add(folder / "albert_tiny", "albert_tiny")
    return folder / "albert_tiny.tar.gz"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """SST-2 as GLUE's files have it, and SQuAD 1.1: a few made-up rows of each, all about as long,
    so that few programs are compiled."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    (folder / "SST-2").mkdir()
    for split, count in (("train", 36), ("dev", 12)):
        rows = ["sentence\tlabel"]
        for number in range(count):
            word = ("dull", "good")[number % 2]
            who = rng.choice(("him", "her", "us"))
            text = f"a {word} film about {who}, and about what is new in the old town"
            rows.append(f"{text}\t{number % 2}")
        (folder / "SST-2" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
        paragraphs = [_paragraph(rng, f"{split}{number}") for number in range(count // 3)]
        squad = {"version": "1.1", "data": [{"title": "Towns", "paragraphs": paragraphs}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(squad))
    return folder


def _paragraph(rng: random.Random, name: str) -> dict:
    """A passage with two answers, the town and the year."""
    town, year = rng.choice(("Paris", "Rome", "Oslo")), str(rng.randrange(1700, 1900))
    context = f"The school of {town} was founded in {year}. " + "It is still there & open. " * 4
    questions = {f"Where is the school {name}?": town, f"When was {name} founded?": year}
    qas = [
        {
            "id": f"{name}-{answer}",
            "question": question,
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for question, answer in questions.items()
    ]
    return {"context": context, "qas": qas}


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as in most places


# Run after each cell that makes a picture.
CHECK = "import tests.helpers.pictures\nprint('faults', tests.helpers.pictures.faults(figure))"


def run(name: str, folder: Path) -> nbformat.NotebookNode:
    """Runs a notebook in `folder`; raises an error in a cell, and what its pictures lack."""
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    cells = notebook.cells
    drawing = [c for c in cells if c.cell_type == "code" and re.search(r"\bfigure\b", c.source)]
    for cell in drawing:
        cells.insert(cells.index(cell) + 1, nbformat.v4.new_code_cell(CHECK))
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}})
    client.execute()
    text = "".join(outputs(notebook, "text"))  # a line may come in two pieces
    assert text.count("faults []\n") == text.count("faults") == len(drawing)
    return notebook


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list:
    """Of each cell's outputs those that are a stream ("text") or of a MIME type."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if kind == "text" and output.output_type == "stream":
                found.append(output.text)
            elif kind in output.get("data", {}):
                found.append(output.data[kind])
    return found


@pytest.mark.slow
def test_fill_mask_shows_answers_and_five_pictures(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("ALBERT_JAX_SOURCE", str(archive))
    notebook = run("fill_mask.ipynb", tmp_path)
    assert len(outputs(notebook, "image/png")) == 5
    text = "".join(outputs(notebook, "text"))
    assert "hello i'm a" in text
    assert "as written 0." in text
    assert "FAIL" not in text


@pytest.mark.slow
def test_glue_eval_shows_curves_mistakes_and_answers_in_their_passages(
    archive, tasks, tmp_path, monkeypatch
):
    for name in ("GLUE", "SQUAD"):
        monkeypatch.setenv(f"ALBERT_JAX_{name}", str(tasks))
    monkeypatch.setenv("ALBERT_JAX_SOURCE", str(archive))
    monkeypatch.setenv("ALBERT_JAX_STEPS", "2")
    notebook = run("glue_eval.ipynb", tmp_path)
    assert len(outputs(notebook, "image/png")) == 4
    text = "".join(outputs(notebook, "text"))
    assert re.search(r"Evaluation\n  task +sst2\n  split +dev\n", text)
    assert text.count(" film about ") == 10  # the worst mistakes
    (page,) = outputs(notebook, "text/html")
    assert page.count("<b>") == 8  # questions
    assert page.count("font-weight:bold") >= 8  # the gold answers
    passages = html.unescape(re.sub("<[^>]+>", "", page))
    assert passages.count("It is still there & open. " * 4) == 8


@pytest.mark.slow
def test_step_time_measures_estimates_and_says_what_it_cannot(tmp_path, monkeypatch):
    config = AlbertConfig(
        vocab_size=200,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    config.to_json(tmp_path / "tiny.json")
    monkeypatch.setenv("ALBERT_JAX_MODELS", f"{tmp_path}/tiny.json")
    monkeypatch.setenv("ALBERT_JAX_STEPS", "3")
    monkeypatch.setenv("ALBERT_JAX_TOPOLOGIES", "v5e:1x1,v5e:0x0")  # the second is none
    notebook = run("step_time.ipynb", tmp_path)
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    assert len(outputs(notebook, "image/png")) == (5 if has_libtpu else 4)
    text = "".join(outputs(notebook, "text"))
    assert "StepBenchmark\n  model " in text
    assert "tiny.json  forward" in text
    assert ("v5e:1x1: fits" in text) == has_libtpu
    assert text.count("albert-jax: ") == 1  # of the slice that there is not, or of libtpu


@pytest.mark.slow
def test_pretrain_draws_its_curves_and_fills_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("ALBERT_JAX_STEPS", "4")
    notebook = run("pretrain.ipynb", tmp_path)
    assert len(outputs(notebook, "image/png")) == 2
    text = "".join(outputs(notebook, "text"))
    assert "done\n" in text
    assert "500,194 parameters" in text


PICTURES = {
    "fill_mask.ipynb": 5,
    "glue_eval.ipynb": 4,
    "pretrain.ipynb": 2,
    "step_time.ipynb": 5,  # the last by libtpu
}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")))
def test_notebooks_are_short_and_stored_with_their_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    assert not any(cell.source.startswith(("def ", "class ")) for cell in notebook.cells)
    assert len(outputs(notebook, "image/png")) == PICTURES[path.name]
    assert path.stat().st_size < 400_000
    stored = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in stored)
    text = "".join(outputs(notebook, "text"))
    assert not re.search(r"/tmp/|/root/|/home/", text)  # folders of the machine that ran it
    if path.name != "step_time.ipynb":
        assert not re.search(r"\d (ms|s|seconds|minutes)\b", text)  # times are of one machine


def test_the_script_that_stores_outputs_runs_every_notebook():
    spec = importlib.util.spec_from_file_location("execute", REPOSITORY / "notebooks/execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    names = {path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert set(execute.ENVIRONMENT) == names == set(PICTURES)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")))
def test_notebooks_use_the_top_of_the_package_alone(path):
    """`import albert_jax`, `albert_jax.plots` beside it, and in recipes `albert_jax.config`."""
    for cell in nbformat.read(path, as_version=4).cells:
        imported = re.findall(r"^(?:from|import) (albert_jax\S*)", cell.source, re.M)
        assert set(imported) <= {"albert_jax", "albert_jax.config", "albert_jax.plots"}
