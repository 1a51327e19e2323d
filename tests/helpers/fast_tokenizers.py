# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that transformers 5 saved; in tests/data it is without SentencePiece's rules."""

import json
import shutil
from pathlib import Path

from albert_jax.data.tokenizer_json import read_spiece


def write_transformers_5(files: Path, folder: Path) -> Path:
    """Writes its files to `folder`, from the unpacked `files`; returns it."""
    document = json.loads((files / "transformers5_tokenizer.json").read_text(encoding="utf-8"))
    [rules] = [x for x in document["normalizer"]["normalizers"] if x["type"] == "Precompiled"]
    rules["precompiled_charsmap"] = read_spiece(files / "cased.model").charsmap
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    config = files / "transformers5_tokenizer_config.json"
    shutil.copyfile(config, folder / "tokenizer_config.json")
    return folder
