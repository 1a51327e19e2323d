# SPDX-License-Identifier: Apache-2.0
"""Model directories with a random head for a task."""

from pathlib import Path

import jax

from albert_jax.checkpoint.model_export import export_model
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import find_task
from tests.helpers.paths import VOCABULARY
from tests.helpers.toy_task import TINY

# Labels of heads for tasks that learn theirs from data.
LABELS = {
    "classification": ("no", "yes"),
    "multi_label": ("N", "O", "V"),
    "token_classification": ("N", "O", "V"),
}


def task_model(path: Path, name: str, **head: object) -> Path:
    """Write a model of `TINY`'s sizes for the task of that name to `path`, and return `path`.

    Its labels are the task's, or `LABELS`. `head` are more entries of the manifest's "head".
    """
    task = find_task(name)
    labels = list(task.labels or LABELS.get(task.head, ()))
    model = AlbertForTask(TINY, kind=task.head, labels=max(len(labels), 1))
    return export_model(
        path,
        params=jax.device_get(init_params(model, jax.random.key(1))),
        config=TINY,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        head={"kind": task.head, "labels": labels, "task": name} | head,
        provenance={"made_by": "a test"},
    )
