# SPDX-License-Identifier: Apache-2.0
"""Documents of 3,000 words for trials of `--long windows`, and of `--positions` on masked pieces.

    python -m benchmarks.long_texts short BOOKS WIKI FOLDER
    python -m benchmarks.long_texts late BOOKS WIKI FOLDER
    python -m benchmarks.long_texts rank MODEL FILE.jsonl
    python -m benchmarks.long_texts positions MODEL STORE

BOOKS is a folder of novels (.txt.gz, the name ends in _AUTHOR), WIKI one of WikiExtractor's output
(AA/*.gz, AD/*.gz). `short` writes train.jsonl and dev.jsonl with `text` and `label`: paragraphs of
novels and of an encyclopedia. `late` writes dev.jsonl with documents of other books and articles:
the first 2,000 words of each are a novel's, and the last 1,000 go on in the novel, or are of an
encyclopedia, which is the label. `rank` prints how well the probability that a classifier of
`short` gives to "encyclopedia" orders such documents, cut and in windows, and what that takes.
`positions` evaluates rows of the model's length, and of twice as many tokens with positions that
are interpolated or repeated, without training.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare_pipeline import drawn_lines

WORDS, LATE = 3000, 1000  # of a document, and of its end
DOCUMENTS, PARAGRAPHS, DEV = 40, 1000, 200
BOOKS = 40  # novels for paragraphs; documents have the others
NOVEL, OTHER = "novel", "encyclopedia"


@dataclass(frozen=True)
class Document:
    """A text and its class."""

    text: str
    label: str


def words_of(path: Path) -> list[str]:
    """Return a file's words, of a wiki extract without its `<doc …>` lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for line in file if not re.match(r"</?doc\b", line)]
    return " ".join(lines).split()


def piece(words: Sequence[str], size: int, draw: random.Random) -> str:
    """Return `size` words in a row, from a random place."""
    first = draw.randrange(len(words) - size + 1)
    return " ".join(words[first : first + size])


def short(books: Path, wiki: Path) -> tuple[list[Document], list[Document]]:
    """Return paragraphs to train on and for dev, of both kinds in equal number."""
    novels = [str(path) for path in sorted(books.glob("*.gz"))[:BOOKS]]
    extracts = [str(path) for path in sorted(wiki.glob("AA/*0.gz"))]
    documents = [
        Document(text, label)
        for label, files in ((NOVEL, novels), (OTHER, extracts))
        for text in drawn_lines(PARAGRAPHS, files)
    ]
    random.Random(0).shuffle(documents)
    return documents[DEV:], documents[:DEV]


def late(books: Path, wiki: Path) -> list[Document]:
    """Return documents of a novel, every second one with an end of another kind."""
    draw = random.Random(0)
    texts = [words_of(path) for path in sorted(books.glob("*.gz"))[BOOKS:]]
    encyclopedia = [words_of(path) for path in sorted(wiki.glob("AD/*.gz"))]
    documents = []
    for number in range(DOCUMENTS):
        if number % 2:
            start = piece(draw.choice(texts), WORDS - LATE, draw)
            end = piece(draw.choice(encyclopedia), LATE, draw)
            documents.append(Document(f"{start} {end}", OTHER))
        else:
            documents.append(Document(piece(draw.choice(texts), WORDS, draw), NOVEL))
    return documents


def write(folder: Path, **splits: list[Document]) -> None:
    """Write a file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, documents in splits.items():
        rows = [json.dumps({"text": each.text, "label": each.label}) + "\n" for each in documents]
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"{split}: {len(documents)} texts")


def rank(model: str, file: Path) -> None:
    """Print the share of pairs of documents of both kinds that a classifier orders rightly."""
    import albert_jax

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    inputs = [{"text": row["text"]} for row in rows]
    for how, stride in (("cut", None), ("windows", 126)):
        settings: dict[str, Any] = {"task": "single", "long": how, "stride": stride}
        list(albert_jax.predict(model, inputs[:2], **settings))  # compiles
        start = time.process_time()
        answers = list(albert_jax.predict(model, inputs, **settings))
        taken = 1000 * (time.process_time() - start) / len(rows)
        shares = [answer.probabilities[OTHER] for answer in answers]
        with_it, without = (
            [
                share
                for share, row in zip(shares, rows, strict=True)
                if (row["label"] == OTHER) is is_it
            ]
            for is_it in (True, False)
        )
        pairs = [(a > b) + 0.5 * (a == b) for a in with_it for b in without]
        print(
            f"{how:10}{100 * sum(pairs) / len(pairs):6.1f} % in order{taken:8.0f} ms of CPU a text"
        )


def positions(model: str, store: str) -> None:
    """Print the held-out masked-LM loss at the model's length, and at twice that."""
    import tempfile

    from albert_jax.checkpoint.model_dir import load_model
    from albert_jax.checkpoint.model_export import export_model
    from albert_jax.checkpoint.model_paths import require_model_directory
    from albert_jax.checkpoint.positions import with_positions
    from albert_jax.config.manifests import settings_in
    from albert_jax.training.heldout import evaluate_on_store

    source = load_model(require_model_directory(model), as_float32=True)
    own = source.config.max_position_embeddings
    vocabulary = source.tokenizer["path"]
    with tempfile.TemporaryDirectory() as folder:
        models = {f"{own} tokens, its own positions": (model, own)}
        for how in ("interpolate", "repeat"):
            longer = with_positions(source, model, 2 * own, how)  # type: ignore[arg-type]
            path = Path(folder) / how
            export_model(
                path,
                params=longer.params,
                config=longer.config,
                vocab=vocabulary,
                tokenizer=settings_in(source.tokenizer),
                provenance={},
            )
            models[f"{2 * own} tokens, {how}"] = (str(path), 2 * own)
            models[f"{own} tokens, {how}"] = (str(path), own)
        for name, (path, length) in models.items():
            examples = 640 * own // length  # of as many tokens each
            found = evaluate_on_store(
                path, store, masking="word", max_seq_length=length, examples=examples
            )
            print(
                f"{name:32}{found.masked_lm_loss:8.3f} nats{100 * found.masked_lm_accuracy:8.1f} %"
                f"{100 * (found.sentence_order_accuracy or 0):8.1f} % in order, "
                f"{found.examples} rows",
                flush=True,
            )


def main() -> None:
    command, *given = sys.argv[1:]
    if command == "positions":
        positions(*given)
    elif command == "rank":
        rank(given[0], Path(given[1]))
    else:
        books, wiki, folder = map(Path, given)
        if command == "short":
            train, dev = short(books, wiki)
            write(folder, train=train, dev=dev)
        else:
            write(folder, dev=late(books, wiki))


if __name__ == "__main__":
    main()
