# SPDX-License-Identifier: Apache-2.0
"""Recognise an older export that a new one may replace: `convert` wrote it, and it is unchanged.

A transformers folder has a comment at the end of its model card, README.md, with the digests of the
card and of the other files. A checkpoint folder of the original's format has `layer_norm_eps` in
its albert_config.json, which Google's files lack.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Literal

from albert_jax.checkpoint.model_dir import file_sha256, require_place
from albert_jax.config.manifests import CONFIG
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.wording import first_ten

CARD = "README.md"
# What sentence-transformers reads beside a transformers model.
POOLING = "1_Pooling"
SENTENCES = (
    f"{POOLING}/config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
)
# Every file that an export of the format may have: a folder with another is not one of them.
FILES = {
    "hf": {
        CARD,
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        *SENTENCES,
    },
    "tf": {
        "30k-clean.model",
        CONFIG,
        "model.ckpt-best.data-00000-of-00001",
        "model.ckpt-best.index",
    },
}
_OURS = "layer_norm_eps"  # which Google's albert_config.json lacks
_STAMP = re.compile(
    r"\n<!-- written by albert-jax convert, SHA-256 [0-9a-f]{16}, with files [0-9a-f]{16} -->\n"
)


def check_export_destination(dest: str | Path, kind: Literal["hf", "tf"]) -> None:
    """Raise UserError if `dest` is no path, or anything but an earlier export of that kind."""
    require_place(dest)
    dest = Path(dest)
    if dest.is_dir():
        names = set(file_names(dest))
        if others := sorted(names - FILES[kind]):
            raise UserError(
                f"{dest} exists and has other files ({first_ten(others)}); give a new path"
            )
        changed = names and (_change_in_hf(dest) if kind == "hf" else _change_in_tf(dest))
        if changed:
            raise UserError(
                f"{dest} exists and {changed}, which would be lost; give a new path, or delete it "
                "first"
            )


def write_card(folder: Path, card: str) -> None:
    """Write the model card of a transformers folder whose other files are complete."""
    stamped = card + _stamp(card, folder)
    (folder / CARD).write_text(stamped, encoding="utf-8", newline="\n")


def _change_in_hf(folder: Path) -> str | None:
    """Return what differs from an export as it was written; None if nothing does."""
    try:
        text = (folder / CARD).read_bytes().decode("utf-8", errors="replace")
    except OSError:  # there is none
        text = ""
    found = _STAMP.search(text)
    if found is None:
        return f"has files that convert may not have written ({first_ten(file_names(folder))})"
    expected = _stamp(text[: found.start()], folder)
    if found.end() < len(text) or _digests(found[0])[0] != _digests(expected)[0]:
        return f"has a model card that was edited ({CARD})"
    return None if found[0] == expected else "has files that were changed since convert wrote it"


def _change_in_tf(folder: Path) -> str | None:
    needed = FILES["tf"] - {"30k-clean.model"}
    with contextlib.suppress(UserError):  # for a configuration that is damaged
        if needed.issubset(file_names(folder)) and _OURS in read_foreign_json(folder / CONFIG):
            return None
    return f"has files that convert may not have written ({first_ten(file_names(folder))})"


def _stamp(card: str, folder: Path) -> str:
    """Return the comment after a card in a folder, with the digests of both."""
    names = [name for name in file_names(folder) if name != CARD]
    others = [f"{n} {file_sha256(folder / n)}" for n in names if (folder / n).is_file()]
    text, rest = (hashlib.sha256(x.encode()).hexdigest()[:16] for x in (card, "\n".join(others)))
    return f"\n<!-- written by albert-jax convert, SHA-256 {text}, with files {rest} -->\n"


def _digests(stamp: str) -> list[str]:
    return re.findall(r"[0-9a-f]{16}", stamp)


def file_names(folder: Path) -> list[str]:
    """Return the names of what is in a folder, and of what is in its `POOLING`, sorted."""
    names = {path.name for path in folder.iterdir()}
    if (inner := folder / POOLING).is_dir():
        names = {*(names - {POOLING}), *(f"{POOLING}/{path.name}" for path in inner.iterdir())}
    return sorted(names)
