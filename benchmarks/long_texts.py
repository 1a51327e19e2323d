# SPDX-License-Identifier: Apache-2.0
"""Documents of 3,000 words for trials of `--long windows`, and of `--positions` on masked pieces.

    python -m benchmarks.long_texts late BOOKS WIKI FOLDER
    python -m benchmarks.long_texts author BOOKS FOLDER
    python -m benchmarks.long_texts encode FILE.jsonl
    python -m benchmarks.long_texts positions MODEL STORE

BOOKS is a folder of novels (.txt.gz, the name ends in _AUTHOR), WIKI one of WikiExtractor's output
(AA/*.gz, AD/*.gz). `late` and `author` write train.jsonl and dev.jsonl with `text` and `label`. In
`late` the first 2,000 words of every document are a novel's; the last 1,000 go on in the novel, or
are of an encyclopedia, and that is the label. In `author` a document is a piece of a novel, and the
label is who wrote it; dev has other novels than training. `encode` times vectors, cut and in
windows; `positions` evaluates rows of the model's length, and of twice as many tokens with
positions that are interpolated or repeated, without training.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WORDS, LATE = 3000, 1000  # of a document, and of its end
DOCUMENTS = {"train": 80, "dev": 40}
# Authors of three novels each, the third of which is dev's; an earlier "Trollope" is his mother.
AUTHORS = ("Disraeli", "Eliot", "Trollope")


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


def late(books: Path, wiki: Path) -> Iterator[tuple[str, list[Document]]]:
    """Yield each split's documents: novels, every second one with an end of another kind."""
    draw = random.Random(0)
    novels = sorted(books.glob("*.gz"))
    parts = {
        "train": (novels[:40], sorted(wiki.glob("AA/*0.gz"))),
        "dev": (novels[40:], sorted(wiki.glob("AD/*.gz"))),
    }
    for split, (of_books, of_wiki) in parts.items():
        texts = [words_of(path) for path in of_books]
        encyclopedia = [words_of(path) for path in of_wiki]
        documents = []
        for number in range(DOCUMENTS[split]):
            if number % 2:
                start = piece(draw.choice(texts), WORDS - LATE, draw)
                end = piece(draw.choice(encyclopedia), LATE, draw)
                documents.append(Document(f"{start} {end}", "appendix"))
            else:
                documents.append(Document(piece(draw.choice(texts), WORDS, draw), "novel"))
        yield split, documents


def author(books: Path) -> Iterator[tuple[str, list[Document]]]:
    """Yield each split's documents: pieces of novels in turn, by who wrote them."""
    draw = random.Random(0)
    for split, chosen in (("train", slice(0, 2)), ("dev", slice(2, 3))):
        documents = []
        for name in AUTHORS:
            novels = sorted(books.glob(f"*_{name}.txt.gz"))[-3:]
            texts = [words_of(path) for path in novels[chosen]]
            for number in range(DOCUMENTS[split] // len(AUTHORS)):
                text = piece(texts[number % len(texts)], WORDS, draw)
                documents.append(Document(text, name))
        yield split, documents


def write(splits: Iterator[tuple[str, list[Document]]], folder: Path) -> None:
    """Write a file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, documents in splits:
        rows = [json.dumps({"text": each.text, "label": each.label}) + "\n" for each in documents]
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"{split}: {len(documents)} documents of {WORDS:,} words")


def encode(file: Path, rounds: int = 3) -> None:
    """Print what a document's vector takes: cut, in windows side by side, and overlapping."""
    import albert_jax

    albert = albert_jax.load("mini")
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    texts = texts[:8]
    ways = {
        "cut": {"long": "cut"},
        "windows, stride 126": {"long": "windows", "stride": 126},
        "windows, stride 63": {"long": "windows", "stride": 63},
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for each in range(rounds + 1):
        for way, settings in ways.items():
            start = time.process_time()
            albert.encode(texts, pool="mean", **settings)  # type: ignore[arg-type]
            if each:  # the first one compiles
                taken[way].append((time.process_time() - start) / len(texts))
    for way, seconds in taken.items():
        print(f"{way:24}{1000 * min(seconds):8.0f} ms of CPU a document")


def positions(model: str, store: str) -> None:
    """Print the held-out masked-LM loss at the model's length, and at twice that."""
    import tempfile

    from albert_jax.checkpoint.model_dir import load_model
    from albert_jax.checkpoint.model_export import export_model
    from albert_jax.checkpoint.model_paths import require_model_directory
    from albert_jax.training.first_values import with_positions
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
                tokenizer={key: source.tokenizer[key] for key in ("mode", "do_lower_case")},
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
        return
    paths = [Path(each) for each in given]
    if command == "encode":
        encode(*paths)
    else:
        write(late(*paths[:2]) if command == "late" else author(paths[0]), paths[-1])


if __name__ == "__main__":
    main()
