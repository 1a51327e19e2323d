# SPDX-License-Identifier: Apache-2.0
"""Embeddings with more rows than the vocabulary has pieces: every command takes them alike, and
none answers with a row that has no piece."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax import export as jax_export

import albert_jax
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.cli import main as cli
from albert_jax.data.pretraining import open_data
from albert_jax.inference.export import export_serving
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import SMALL, made_up, write_original, write_transformers
from tests.helpers.paths import VOCABULARY
from tests.helpers.pretraining_runs import make_store, tiny_config

convert = albert_jax.convert


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8,064 rows, the last of which are the likeliest, and 8,000 pieces."""
    root = tmp_path_factory.mktemp("padded")
    config = dataclasses.replace(SMALL, vocab_size=8064)
    params = made_up(config)
    params["predictions/output_bias"][8000:] += 10
    source = write_original(root / "tf", params, config).parent
    shutil.copyfile(VOCABULARY, source / "30k-clean.model")
    convert(source, root / "model")
    return root / "model"


def test_rows_without_a_piece_are_kept_and_said(padded: Path, tmp_path: Path) -> None:
    notes = load_model(padded).manifest["provenance"]["notes"]
    assert any("rows 8,000 to 8,063 of the embeddings have no piece" in note for note in notes)
    for to in ("hf", "tf"):
        report = convert(padded, tmp_path / to, to)
        assert any("rows 8,000 to 8,063" in note for note in report["notes"])
        convert(tmp_path / to, tmp_path / f"{to} back")
        ours, theirs = (
            load_model(f).manifest["tensors"] for f in (padded, tmp_path / f"{to} back")
        )
        assert ours == theirs
    few = write_transformers(tmp_path / "few", made_up())
    with pytest.raises(UserError, match="has 8000 pieces and the model 50"):
        convert(few, tmp_path / "no", vocab=VOCABULARY)


def test_a_vocabulary_of_far_fewer_pieces_is_anothers_unless_tokens_were_added(
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(SMALL, vocab_size=9000)
    hf = write_transformers(tmp_path / "hf", made_up(config), config)
    shutil.copyfile(VOCABULARY, hf / "spiece.model")
    with pytest.raises(UserError, match="has 8000 pieces and the model 9000"):
        convert(hf, tmp_path / "no")
    added = {f"<{i}>": 8000 + i for i in range(1000)}
    (hf / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(UserError, match="<0> at id 8000"):
        convert(hf, tmp_path / "no")
    report = convert(hf, tmp_path / "grown", vocab=hf / "spiece.model")
    assert any("rows 8,000 to 8,999" in note for note in report["notes"])
    with pytest.raises(UserError, match="has 8000 pieces and the model 9000"):
        convert(tmp_path / "grown", tmp_path / "no", vocab=VOCABULARY)
    convert(tmp_path / "grown", tmp_path / "again")


def test_a_row_without_a_piece_is_never_answered(padded: Path) -> None:
    albert = albert_jax.load(padded)
    assert albert.tokenizer.vocab_size == 8000
    assert albert.config.vocab_size == 8064
    answers = albert.fill_mask("a [MASK] b", top_k=50)
    logits = albert.forward(
        [[2, *albert.tokenizer.encode("a [MASK] b", parse_special=True).ids, 3]]
    )
    logits_V = logits.masked_lm_logits[0, 2].astype(np.float64)
    best = np.argsort(-logits_V)
    assert {int(i) for i in best[:5]} & set(range(8000, 8064))  # they would be among the answers
    wanted = [int(i) for i in best if i < 8000][:50]
    assert [row["token"] for row in answers] == wanted
    shares = np.exp(logits_V - logits_V.max())
    shares /= shares.sum()  # as transformers', of all rows
    found = [row["score"] for row in answers]
    np.testing.assert_allclose(found, shares[wanted], rtol=1e-4, atol=0)
    assert len(albert.fill_mask("a [MASK] b", top_k=8000)) == 8000
    with pytest.raises(UserError, match="top_k 8001 must be between 1 and 8000"):
        albert.fill_mask("a [MASK] b", top_k=8001)
    words = albert.fill_mask("a [MASK] b", targets=["the", "list"])
    assert {row["token"] for row in words} <= set(range(8000))


def test_an_exported_program_never_answers_such_a_row(padded: Path, tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers")
    export_serving(padded, tmp_path / "serving", top_k=8000)
    program = jax_export.deserialize(
        bytearray((tmp_path / "serving" / "fill_mask.jax_export").read_bytes())
    )
    with np.load(tmp_path / "serving" / "params.npz") as file:
        params = dict(file)
    ids = np.array([[2, 100, 4, 3]], np.int32)
    found = program.call(params, ids, ids * 0 + 1, ids * 0, np.array([[2]], np.int32))
    assert sorted(np.asarray(found["tokens"])[0, 0].tolist()) == list(range(8000))
    with pytest.raises(UserError, match="top_k 8001 must be between 1 and 8000"):
        export_serving(padded, tmp_path / "no", top_k=8001)


def test_the_other_commands_take_such_a_model(padded: Path, capsys: Any) -> None:
    assert cli.main(["verify", str(padded)]) == 0
    assert "8,000 pieces for 8,064 rows of embeddings" in capsys.readouterr().out
    assert cli.main(["fill-mask", str(padded), "a [MASK] b", "--top-k", "3"]) == 0
    assert cli.main(["info", str(padded)]) == 0


def test_pretraining_takes_padded_embeddings_and_what_it_goes_on_with(
    padded: Path, tmp_path: Path, capsys: Any
) -> None:
    store = make_store(tmp_path, documents=8)
    config = tiny_config(store, tmp_path / "run")

    def of_rows(rows: int, init_from: Path | None = None) -> Any:
        model = dataclasses.replace(config.model, vocab_size=rows)
        start = str(init_from) if init_from else None
        return dataclasses.replace(config, model=model, init_from=start)

    open_data(of_rows(8000), None)
    assert "no piece" not in capsys.readouterr().err
    open_data(of_rows(8064), None)
    assert "rows 8,000 to 8,063 of the embeddings have no piece" in capsys.readouterr().err
    for rows in (7999, 8128, 30000):
        with pytest.raises(UserError, match=f"and the model {rows}; give model.vocab_size=8000"):
            open_data(of_rows(rows), None)
    open_data(of_rows(9000, padded), None)
    with pytest.raises(UserError, match="has 8000 pieces and the model 7999"):
        open_data(of_rows(7999, padded), None)
