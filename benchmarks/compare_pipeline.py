# SPDX-License-Identifier: Apache-2.0
"""Compares a classifier's answers with those of transformers' pipeline, on real lines.

    python benchmarks/compare_pipeline.py lines COUNT FILE… > LINES
    python benchmarks/compare_pipeline.py save SOURCE FOLDER
    python benchmarks/compare_pipeline.py answers FOLDER LINES ANSWERS.json
    python -m benchmarks.compare_pipeline compare MODEL LINES ANSWERS.json

`lines` draws lines of text files, plain or gz. `save` has transformers read a folder and write it
again, without a SentencePiece model. `answers` keeps what the pipeline says of each line, and
`compare` prints how far `predict` of MODEL, a classifier of single texts, is from it; only that
needs albert_jax. Both cut a line after 128 tokens.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 128  # tokens of a row


@dataclass(frozen=True)
class Difference:
    """How two sets of answers to the same lines differ."""

    lines: int
    labels: int  # lines with another label
    most: float  # between two probabilities of a label
    tied: int  # of those with another label, how many have two labels as likely within 1e-5
    other: tuple[str, ...]  # lines with another label


def drawn_lines(count: int, files: Sequence[str]) -> list[str]:
    """Return `count` different lines of files, drawn with seed 0; blank ones and markup left out.

    Raises SystemExit where the files have fewer.
    """
    found: dict[str, None] = {}
    for file in files:
        read = gzip.open if file.endswith(".gz") else open
        with read(file, "rt", encoding="utf-8") as text:  # type: ignore[operator]
            stripped = (line.strip() for line in text)
            found |= dict.fromkeys(line for line in stripped if line and not line.startswith("<"))
    if len(found) < count:
        raise SystemExit(f"the files have {len(found)} lines; {count} were asked for")
    return random.Random(0).sample(list(found), count)


def save(source: str, folder: str) -> None:
    """Have transformers write a model and its fast tokenizer anew."""
    import transformers

    model = transformers.AutoModelForPreTraining.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "spiece.model").unlink(missing_ok=True)


def pipeline_answers(folder: str, lines: Sequence[str]) -> list[dict[str, float]]:
    """Return the probability of each label for each line, by transformers' pipeline."""
    import transformers

    classify = transformers.pipeline("text-classification", folder, device="cpu")
    answers = classify(list(lines), truncation=True, max_length=LENGTH, top_k=None)
    return [{each["label"]: each["score"] for each in answer} for answer in answers]


def compare(model: str, lines: Sequence[str], answers: Sequence[dict[str, float]]) -> Difference:
    """Return how `predict` differs from the pipeline's answers."""
    from albert_jax import predict

    inputs = [{"text": line} for line in lines]
    ours = list(predict(model, inputs, task="single", max_seq_length=LENGTH))
    other, tied, most = [], 0, 0.0
    for line, answer, theirs in zip(lines, ours, answers, strict=True):
        assert answer.probabilities.keys() == theirs.keys()
        most = max(most, *(abs(answer.probabilities[name] - x) for name, x in theirs.items()))
        if answer.prediction != max(theirs, key=lambda name: theirs[name]):
            second, first = sorted(theirs.values())[-2:]
            tied += first - second < 1e-5
            other.append(line)
    return Difference(len(lines), len(other), most, tied, tuple(other))


def main(arguments: Sequence[str] | None = None) -> None:
    command, *given = sys.argv[1:] if arguments is None else arguments
    if command == "lines":
        count, *files = given
        print("\n".join(drawn_lines(int(count), files)))
        return
    if command == "save":
        save(*given)
        return
    folder, file, kept = given
    lines = Path(file).read_text(encoding="utf-8").rstrip("\n").split("\n")
    if command == "answers":
        found: Any = pipeline_answers(folder, lines)
        Path(kept).write_text(json.dumps(found), encoding="utf-8")
        return
    difference = compare(folder, lines, json.loads(Path(kept).read_text(encoding="utf-8")))
    print(
        f"{difference.lines:,} lines: {difference.labels} with another label ({difference.tied} of "
        f"them tied), probabilities at most {difference.most:.1e} apart"
    )
    for line in difference.other[:5]:
        print(f"    {line[:100]!r}")


if __name__ == "__main__":
    main()
