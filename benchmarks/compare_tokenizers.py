# SPDX-License-Identifier: Apache-2.0
"""Compares the ids that transformers and albert_jax give real lines.

    python benchmarks/compare_tokenizers.py ids FOLDER IDS.json FILE…
    python -m benchmarks.compare_tokenizers compare FOLDER IDS.json FILE…

`ids` needs transformers and nothing else, `compare` albert_jax.
FOLDER is what AutoTokenizer, or Tokenizer.load, is given; FILE is text, JSON or gz, every line or
string of which counts once. `compare` prints how many lines have other ids, and the first of them.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines_of(files: list[str]) -> list[str]:
    """Return the lines and strings of files, each once, in order."""
    return list(dict.fromkeys(line for file in files for line in _lines(Path(file))))


def _lines(file: Path) -> Iterator[str]:
    read = gzip.open if file.suffix == ".gz" else open
    with read(file, "rt", encoding="utf-8") as text:  # type: ignore[operator]
        if file.suffix == ".json":
            yield from _strings(json.load(text))
            return
        for line in text:
            cells = line.rstrip("\n").split("\t")
            yield from (cell for cell in cells if cell.strip())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def main() -> None:
    command, folder, ids, *files = sys.argv[1:]
    lines = lines_of(files)
    if command == "ids":
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        name = f"transformers {transformers.__version__}'s {type(tokenizer).__name__}"
        found = []
        for start in range(0, len(lines), 5000):
            some = lines[start : start + 5000]
            found += tokenizer(some, add_special_tokens=False, truncation=False)["input_ids"]
        Path(ids).write_text(json.dumps([name, found]))
        return
    from albert_jax import Tokenizer

    name, theirs = json.loads(Path(ids).read_text())
    ours = Tokenizer.load(folder)
    encoded = ours.encode_batch(lines, parse_special=True)
    wrong = [i for i, (e, ids) in enumerate(zip(encoded, theirs, strict=True)) if e.ids != ids]
    print(f"{name}, {ours}: {len(wrong)} of {len(lines)} lines have other ids")
    for i in wrong[:5]:
        print(f"    {lines[i][:150]!r}")


if __name__ == "__main__":
    main()
