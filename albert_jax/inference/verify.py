# SPDX-License-Identifier: Apache-2.0
"""Check a model directory, with one verdict a line.

A model must be complete, consistent and finite. If it holds released weights, it must give their
published answers (`verify_released`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from albert_jax.checkpoint.convert.parameters import misfits, part_of
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.heads import HeadKind
from albert_jax.data.special_pieces import ALBERT_IDS, CLS_ID, PAD_ID, SEP_ID
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.api import Albert
from albert_jax.inference.finetuned import for_task, head_network, head_outputs
from albert_jax.inference.id_arrays import INPUTS
from albert_jax.inference.published import RELEASED, Released
from albert_jax.inference.serving_check import TOLERANCE, as_head_inputs, distance
from albert_jax.inference.verify_released import Check, Verdict, check_answers
from albert_jax.models.heads import HEADS
from albert_jax.utils.arguments import checked
from albert_jax.utils.columns import aligned
from albert_jax.utils.errors import UserError
from albert_jax.utils.results import Result
from albert_jax.utils.wording import did_you_mean, first_ten, setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Verification(Result):
    """Hold the checks of a model directory.

    Attributes:
        model: the model directory.
        verdict: PASS, or FAIL if any check fails.
        released: the released model that this one is, or None.
        parameters: the number of parameters; None if they cannot be read.
        checks: each check with its verdict and what it found.
    """

    model: str
    verdict: Verdict
    released: str | None
    parameters: int | None
    checks: list[Check]


@checked
def verify(
    directory: str | Path, *, expect: str | None = None, released: Released | None = None
) -> Verification:
    """Check a model directory: its files, its parameters, and the answers of a released model.

    Args:
        directory: a model directory, or a model's name.
        expect: the released model that it must be.
        released: released models to compare with; unset, the published ones.

    Returns:
        The checks and their verdict.

    Raises:
        UserError: if the path is no model directory, or `expect` is unknown.

    Examples:
        >>> import albert_jax
        >>> albert_jax.verify("mini").verdict
        'PASS'
    """
    directory = require_model_directory(directory, "directory")
    released = RELEASED if released is None else released
    if expect is not None and expect not in released.models:
        raise UserError(
            f"{setting('expect')} {expect!r} is "
            f"unknown{did_you_mean(expect, released.models, quote='')}; known: "
            f"{', '.join(released.models)}"
        )
    model, checks, name = None, [], None
    try:
        # The checks below report on its values.
        model = load_model(directory, check_values=False, as_float32=True)
    except UserError as error:
        checks.append(Check("files", "FAIL", str(error)))
    if model is not None:
        checks, name = _checks(model, expect, released)
    return Verification(
        model=str(directory),
        verdict="FAIL" if any(check.verdict == "FAIL" for check in checks) else "PASS",
        released=name,
        parameters=None if model is None else sum(x.size for x in jax.tree.leaves(model.params)),
        checks=checks,
    )


def checks_table(found: Verification) -> str:
    """Return the checks as aligned lines."""
    return aligned([(each.verdict, each.check, each.detail) for each in found.checks])


def failure(found: Verification) -> str | None:
    """Return what failed, in one line, or None."""
    failed = [each.check for each in found.checks if each.verdict == "FAIL"]
    if not failed:
        return None
    told = f"{len(failed)} of {len(found.checks)} checks failed: {', '.join(failed)}"
    return f"{found.model}: {told}"


def _checks(
    model: ModelDirectory, expect: str | None, released: Released
) -> tuple[list[Check], str | None]:
    tensors, files = len(model.manifest["tensors"]), len(model.manifest["sha256"])
    whole = f"{tensors} tensors and {files} files are bit for bit as they were written"
    inventory = _inventory(model)
    vocabulary, tokenizer = _vocabulary(model)
    checks = [Check("files", "PASS", whole), inventory, _finite(model), vocabulary]
    if inventory.verdict == "FAIL":
        why = "not computed, as the parameters are not those of the configuration"
        return [*checks, Check("forward", "FAIL", why)], None
    albert = Albert(model.config, model.params, tokenizer, head=model.head)
    checks.append(_forward(albert))
    if checks[-1].verdict == "FAIL":
        return checks, None
    name, answers = check_answers(model, albert, tokenizer, expect, released)
    return checks + answers, name


# ----------------------------------------------------------------------------------- of any model


def _inventory(model: ModelDirectory) -> Check:
    """Check that every parameter of the configuration is there with its shape, and no other."""
    found = {name: x.shape for name, x in named_leaves(model.params).items()}
    head = model.head
    kind, labels = (head.kind, head.labels) if head else (None, None)
    parts = {part_of(name) for name in found} | {"embeddings", "encoder"}
    if kind is not None:
        parts |= {"head", "pooler"} if HEADS[kind].pooled else {"head"}
    if "seq_relationship" in parts:
        parts.add("pooler")
    if wrong := misfits(found, model.config, kind, labels, needed=parts):
        return Check("inventory", "FAIL", first_ten(wrong, "; "))
    count = sum(math.prod(shape) for shape in found.values())
    described = ", ".join(sorted(parts - {"head"})) + (f", head ({kind})" if kind else "")
    detail = f"{len(found)} tensors, {count:,} parameters: {described}"
    return Check("inventory", "PASS", detail)


def _finite(model: ModelDirectory) -> Check:
    counts = {
        name: int((~np.isfinite(x.astype(np.float32))).sum())
        for name, x in named_leaves(model.params).items()
    }
    wrong = [f"{name} has {count:,}" for name, count in counts.items() if count]
    if wrong:
        return Check("finite values", "FAIL", f"NaN or infinite: {first_ten(wrong, '; ')}")
    return Check("finite values", "PASS", "no NaN, no infinity")


def _vocabulary(model: ModelDirectory) -> tuple[Check, Tokenizer | None]:
    path = model.tokenizer["path"]
    if path is None:
        return Check("vocabulary", "SKIP", "none: the model takes ids and no text"), None
    try:
        tokenizer = Tokenizer.load(path, **model.text_settings)
    except UserError as error:
        return Check("vocabulary", "FAIL", str(error)), None
    pieces, rows = f"{tokenizer.vocab_size:,} pieces", model.config.vocab_size
    if tokenizer.vocab_size > rows:
        return Check("vocabulary", "FAIL", f"{pieces}, but the model has {rows:,}"), None
    if tokenizer.vocab_size < rows:
        pieces += f" for {rows:,} rows of embeddings"
    case = "lower-cased" if tokenizer.do_lower_case else "cased"
    case += ", accents kept" * (tokenizer.keep_accents and tokenizer.do_lower_case)
    special = [tokenizer.pieces[i] for i in tokenizer.special]
    where = "0 to 4" if tokenizer.special == ALBERT_IDS else ", ".join(map(str, tokenizer.special))
    detail = f"{pieces}, {' '.join(special)} at {where}; cleaned as {tokenizer.mode}'s, {case}"
    return Check("vocabulary", "PASS", detail), tokenizer


def _forward(albert: Albert) -> Check:
    """Check that all outputs are finite, and that those of tokens do not depend on padding.

    The ids are of the whole vocabulary; the second row is half padding.
    """
    length = min(16, albert.config.max_position_embeddings)
    ids_S = np.linspace(PAD_ID, albert.config.vocab_size - 1, length).astype(np.int32)
    ids_S[0], ids_S[-1] = CLS_ID, SEP_ID
    ids_BS = np.stack([ids_S, ids_S])
    mask_BS = np.ones_like(ids_BS)
    mask_BS[1, length // 2 :] = 0
    own_BS = ids_BS.copy()
    ids_BS[1, length // 2 :] = PAD_ID
    found = albert.outputs(ids_BS, mask_BS)
    outputs = {n: x for n, x in vars(found).items() if x is not None}
    if albert.head is not None:
        outputs |= _head_outputs(albert, albert.head["kind"], ids_BS, mask_BS)
    wrong = [name for name, x in outputs.items() if not np.isfinite(x).all()]
    if wrong:
        return Check("forward", "FAIL", f"NaN or infinite: {', '.join(wrong)}")
    # Other ids under the same mask, so that the same program runs and nothing else can differ.
    other = albert.outputs(own_BS, mask_BS)
    off = distance(other.sequence[1, : length // 2], found.sequence[1, : length // 2])
    if off > TOLERANCE["float32"]:
        detail = f"the ids under padding change the other tokens' states by up to {off:.1e}"
        return Check("forward", "FAIL", detail)
    names = ", ".join(name.replace("_", " ") for name in outputs)
    detail = f"{names} are finite for {len(ids_BS)} rows of {length} ids; padding changes none"
    return Check("forward", "PASS", detail)


def _head_outputs(
    albert: Albert, kind: HeadKind, ids_BS: np.ndarray, mask_BS: np.ndarray
) -> dict[str, np.ndarray]:
    model = head_network(albert.config, albert.compute, kind, albert.params)
    given = as_head_inputs(kind, (ids_BS, mask_BS, np.zeros_like(ids_BS)))
    batch = dict(zip((*INPUTS, "p_mask"), given, strict=False))
    outputs = jax.jit(partial(head_outputs, model))(for_task(albert.params), batch)
    parts = [np.asarray(x, np.float32).reshape(-1) for x in outputs.values()]
    return {"head": np.concatenate(parts)}
