# SPDX-License-Identifier: Apache-2.0
"""Runs the notebooks on the packaged model and stores them with their outputs.

python notebooks/execute.py [NAME…]

Pictures are stored with 256 colours, which makes them half as large. A notebook's environment,
and the data of glue_eval.ipynb, are made here: SciPy's documentation as SST-2's files (1: about
statistics) and made-up passages as SQuAD's. The last picture of step_time.ipynb needs libtpu.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "fill_mask.ipynb": {"ALBERT_JAX_SOURCE": "mini"},
    "glue_eval.ipynb": {
        "ALBERT_JAX_SOURCE": "mini",
        "ALBERT_JAX_GLUE": "data",
        "ALBERT_JAX_SQUAD": "data",
        "ALBERT_JAX_STEPS": "150",
    },
    "pretrain.ipynb": {},
    "step_time.ipynb": {
        "ALBERT_JAX_MODELS": "mini",
        "ALBERT_JAX_STEPS": "5",
        "ALBERT_JAX_TOPOLOGIES": "v5e:1x1",
    },
}


def main(names: list[str]) -> None:
    """Run the notebooks with these names, or all."""
    for name in names or ENVIRONMENT:
        with tempfile.TemporaryDirectory() as folder:
            if name == "glue_eval.ipynb":
                write_reviews(Path(folder, "data", "SST-2"))
                write_lives(Path(folder, "data"))
            notebook = nbformat.read(HERE / name, as_version=4)
            os.environ.update(ENVIRONMENT[name], PYTHONPATH=str(HERE.parent))
            client = NotebookClient(
                notebook, timeout=None, resources={"metadata": {"path": folder}}
            )
            client.execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times
            if cell.cell_type == "code":
                shown = [output for output in cell.outputs if output.get("name") != "stderr"]
                cell.outputs = [small(without(output, f"{folder}/")) for output in shown]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, HERE / name)
        print(name, f"{(HERE / name).stat().st_size / 1024:.0f} KiB", file=sys.stderr)


def without(output: Any, folder: str) -> Any:
    """Return an output without the name of the folder that the notebook ran in."""
    if "text" in output:
        output.text = output.text.replace(folder, "")
    return output


def small(output: Any) -> Any:
    """Return an output whose picture has 256 colours."""
    if "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        file = io.BytesIO()
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True
        )
        output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return output


def write_reviews(folder: Path) -> None:
    """Write sentences of SciPy's documentation as SST-2: label 1 if they are from scipy.stats."""
    rows = set()
    for module in ("linalg", "signal", "special", "stats"):
        names = importlib.import_module(f"scipy.{module}")
        for name in names.__all__:
            paragraphs = (inspect.getdoc(getattr(names, name)) or "").split("\n\n")[:2]
            texts = [" ".join(paragraph.split()) for paragraph in paragraphs]
            rows |= {(t, str(int(module == "stats"))) for t in texts if 20 < len(t) < 90}
    shuffled = sorted(rows)
    random.Random(0).shuffle(shuffled)  # noqa: S311 - no secret
    folder.mkdir(parents=True)
    for split, part in (("train", shuffled[150:]), ("dev", shuffled[:150])):
        lines = ["sentence\tlabel", *("\t".join(row) for row in part)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_lives(folder: Path) -> None:
    """Write short biographies that are made up, with four questions each, as SQuAD 1.1."""
    rng = random.Random(0)  # noqa: S311 - no secret
    for split, count in (("train", 300), ("dev", 25)):
        paragraphs = [_life(rng, f"{split}{number}") for number in range(count)]
        squad = {"version": "1.1", "data": [{"title": "Lives", "paragraphs": paragraphs}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(squad), encoding="utf-8")


def _life(rng: random.Random, name: str) -> dict[str, Any]:
    who = rng.choice(("Anna Weber", "James Cook", "Mary Hill", "Paul Martin", "Emma King"))
    town = rng.choice(("Paris", "Berlin", "London", "Rome", "Vienna", "Boston", "Oxford"))
    work = rng.choice(("painter", "doctor", "teacher", "poet", "soldier", "lawyer", "engineer"))
    year = str(rng.randrange(1700, 1950))
    context = f"{who} was born in {town} in {year}. After school {who} became a {work}."
    asked = {
        f"When was {who} born?": year,
        f"Where was {who} born?": town,
        f"What did {who} become?": work,
        f"Who became a {work}?": who,
    }
    qas = [
        {
            "id": f"{name}-{number}",
            "question": question,
            "answers": [{"text": answer, "answer_start": context.rindex(answer)}],
        }
        for number, (question, answer) in enumerate(asked.items())
    ]
    return {"context": context, "qas": qas}


if __name__ == "__main__":
    main(sys.argv[1:])
