# SPDX-License-Identifier: Apache-2.0
"""Compare a model with the published answers of released weights, with one verdict a line.

Released weights are recognised in one of three ways: the caller names them (`expect`), the source
that they were converted from has a released model's name, or the model gives numbers that are
published for them. In the first two cases every wrong answer fails; in the last, every answer that
is not one of these numbers. A model of a released size that is not recognised is a user's own
model, and not wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from albert_jax.checkpoint.model_dir import ModelDirectory
from albert_jax.config.model import unlike_sizes
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.api import Albert
from albert_jax.inference.published import Answer, Fill, Numbers, Released
from albert_jax.utils.results import Result
from albert_jax.utils.wording import first_ten, setting

Verdict = Literal["PASS", "FAIL", "SKIP"]
TITLE = "released weights"


@dataclass(frozen=True, eq=False)
class Check(Result):
    """Hold one line of verdicts; SKIP means that there was nothing to compare with."""

    check: str
    verdict: Verdict
    detail: str


def check_answers(
    model: ModelDirectory,
    albert: Albert,
    tokenizer: Tokenizer | None,
    expect: str | None,
    released: Released,
) -> tuple[str | None, list[Check]]:
    """Return the released model's name, or None, and the checks of its answers."""
    sized = [n for n, c in released.models.items() if not unlike_sizes(model.config, c)]
    is_fine_tuned = model.head is not None
    claimed = expect or (None if is_fine_tuned else named_by_source(model.manifest, released))
    if claimed is not None and claimed not in sized:
        differs = unlike_sizes(model.config, released.models[claimed])
        return None, [Check(TITLE, "FAIL", f"not {claimed}: {first_ten(differs, '; ')}")]
    if not sized:
        return None, [Check(TITLE, "SKIP", "none has this architecture")]
    if claimed is None and is_fine_tuned:
        return None, [Check(TITLE, "SKIP", "fine-tuned, so no published answers")]
    results = [
        (answer, *_compare(albert, tokenizer, answer))
        for answer in released.answers
        if set(answer.models) & set(sized)
    ]
    proofs = [a for a, fits, _ in results if fits and a.certain and isinstance(a, Numbers)]
    proven = proofs[0].models[0] if proofs else None
    name = claimed or proven
    checks = [_identity(claimed, proven, sized, [answer for answer, _, _ in results])]
    if name and (ours := model.config.hidden_act) != (theirs := released.models[name].hidden_act):
        # transformers' files of v1 have another activation than the original.
        detail = f"{ours}, where the original computes {theirs}"
        checks.append(Check("activation", "SKIP", detail))
    checks.append(_released_vocabulary(tokenizer, name, released))
    # Of a model that is none of them, the answers that it does not give are none it should give.
    checks += [_verdict(name, *result) for result in results if name or result[1]]
    return (name if checks[0].verdict == "PASS" else None), checks


def named_by_source(manifest: Mapping[str, Any], released: Released) -> str | None:
    """Return the released model whose archive or folder the weights were converted from.

    The name of the source decides; None if it is no released model's.
    """
    source = manifest["provenance"].get("source")
    if not isinstance(source, str):
        return None
    parts = ["", "", *re.split(r"[/\\]+", source.rstrip("/\\"))]
    if re.match(r"model\.|variables$|pytorch_model|flax_model", parts[-1]):
        parts.pop()
    last = parts.pop().partition("@")[0]  # a hub's revision
    if parts and parts[-1] == "snapshots":  # the hub's cache
        last = parts[-2].removeprefix("models--").rpartition("--")[2]
    found = re.fullmatch(r"albert[-_](\w+?)[-_](v\d)(\.tar\.gz|\.tgz|\.tar)?", last)
    name = f"{found[1]}-{found[2]}" if found else None
    return name if name in released.models else None


def _compare(
    albert: Albert, tokenizer: Tokenizer | None, answer: Answer
) -> tuple[bool | None, str]:
    """Return whether the model gives that answer (None: it cannot), and how close it comes."""
    if isinstance(answer, Fill):
        if tokenizer is None or "predictions" not in albert.params:
            return None, f"no {'vocabulary' if tokenizer is None else 'masked-LM head'}"
        found = albert.fill_mask(answer.text, top_k=len(answer.words))
        words = tuple(row["token_str"].strip() for row in found)
        fits = words == answer.words
        if answer.ids:
            fits = fits and tuple(row["token"] for row in found) == answer.ids
        if not fits:
            return False, f"{', '.join(words)}, not {', '.join(answer.words)}"
        if not answer.scores:
            return True, ", ".join(words)
        difference = np.abs(np.subtract([row["score"] for row in found], answer.scores)).max()
    else:
        mask = None if answer.input_mask is None else [answer.input_mask]
        output = getattr(albert.forward([answer.input_ids], mask), answer.output)
        if output is None:
            return None, f"the model computes no {answer.output}"
        values = np.asarray(answer.values)
        part = tuple(slice(i, i + n) for i, n in zip(answer.corner, values.shape, strict=True))
        difference = np.abs(output[0][part] - values).max()
    detail = f"largest difference {difference:.1g}, allowed {answer.tolerance:.1g}"
    return bool(difference <= answer.tolerance), detail


def _identity(
    claimed: str | None, proven: str | None, sized: list[str], answers: list[Answer]
) -> Check:
    if claimed and proven and claimed != proven:
        return Check(TITLE, "FAIL", f"{proven}'s, by its published numbers, not {claimed}'s")
    if proven:
        return Check(TITLE, "PASS", f"{proven}'s, by its published numbers")
    if claimed is None:
        insist = setting("expect", "NAME")
        detail = f"other ones, of the size of {', '.join(sized)} ({insist} to insist)"
        return Check(TITLE, "SKIP", detail)
    if any(answer.certain and claimed in answer.models for answer in answers):
        return Check(TITLE, "FAIL", f"not {claimed}'s: it gives none of the published numbers")
    return Check(TITLE, "SKIP", f"nothing of {claimed}'s is published but its vocabulary")


def _released_vocabulary(
    tokenizer: Tokenizer | None, name: str | None, released: Released
) -> Check:
    title = "released vocabulary"
    if tokenizer is None:
        return Check(title, "SKIP", "no vocabulary")
    pieces = dict(enumerate(tokenizer.pieces))  # fewer than the rows of embeddings, perhaps
    wrong = [
        f"piece {i} is {pieces.get(i, 'none')}, not {piece}"
        for i, piece in released.pieces.items()
        if pieces.get(i) != piece
    ]
    for text, ids in released.texts.items():
        if (found := tuple(tokenizer.encode(text, parse_special=True).ids)) != ids:
            wrong.append(f"{text[:30]!r} has other ids: {_first_difference(found, ids)}")
    if wrong:
        return Check(title, "FAIL" if name else "SKIP", first_ten(wrong[:2], "; "))
    detail = (
        f"{len(released.texts)} texts have the published ids, so do {len(released.pieces)} pieces"
    )
    return Check(title, "PASS", detail)


def _first_difference(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
    if at is None:
        return f"{len(found)} of them, not {len(wanted)}"
    return f"{found[at]} at {at}, not {wanted[at]}"


def _verdict(name: str | None, answer: Answer, fits: bool | None, detail: str) -> Check:
    if fits:
        verdict: Verdict = "PASS"
    elif fits is False and answer.certain and name in answer.models:
        verdict = "FAIL"
    else:
        verdict = "SKIP"
        if fits is False and not answer.certain:
            detail += "; but several models' cards print this one"
    return Check(answer.name, verdict, f"{detail} ({answer.source})")
