# SPDX-License-Identifier: Apache-2.0
"""Made-up text, and stores that were prepared of it."""

import itertools
import random
import re
from pathlib import Path

from albert_jax.data.store import TokenStore

WORDS = re.findall(
    r"\w+",
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who will "
    "python module function returns value string object method argument called default number",
)


UNIT_BYTES = 1 << 17  # small units make many of little text


def make_text(path: Path, size: int, *, seed: int = 0) -> Path:
    """About `size` bytes: a sentence a line, documents of 1 to 30 sentences."""
    rng = random.Random(seed)
    with open(path, "w") as stream:
        while stream.tell() < size:
            for _ in range(rng.randint(1, 30)):
                sentence = " ".join(rng.choices(WORDS, k=rng.randint(3, 25)))
                stream.write(sentence.capitalize() + ".\n")
            stream.write("\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def sentences_of(store: Path, split: str) -> list[list[list[int]]]:
    found = []
    for shard in TokenStore.open(store, split=split).shards:
        for first, last in itertools.pairwise(shard.document_starts.tolist()):
            starts = shard.sentence_starts[first : last + 1].tolist()
            found.append([shard.tokens[a:b].tolist() for a, b in itertools.pairwise(starts)])
    return found


COMMAND = """
import sys
from albert_jax.data.prepare import units
from albert_jax.data.prepare.build import prepare
if __name__ == "__main__":
    units.MIN_UNIT_BYTES = {unit_bytes}
    workers, store, *texts = sys.argv[1:]
    prepare(texts, vocab={vocab!r}, output=store, holdout=0.1, workers=int(workers))
"""
