# SPDX-License-Identifier: Apache-2.0
"""Model directories with a random head for a task."""

from pathlib import Path

import jax

from albert_jax.checkpoint.model_export import export_model
from albert_jax.config import AlbertConfig
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import find_task
from tests.helpers.models import tiny_albert
from tests.helpers.paths import VOCABULARY

SHORT = tiny_albert(
    vocab_size=8000, num_hidden_layers=1, max_position_embeddings=32, initializer_range=0.1
)


def task_model(
    path: Path, name: str, *, labels: tuple[str, ...] = (), config: AlbertConfig = SHORT
) -> Path:
    """Return `path`, to which a model for the task of that name is written unless it is there.

    Its labels are the task's, or `labels`, or no and yes.
    """
    if path.exists():
        return path
    task = find_task(name)
    own = list(labels or task.labels)
    if not own and task.head == "classification":
        own = ["no", "yes"]
    head = AlbertForTask(config, kind=task.head, labels=max(len(own), 1))
    return export_model(
        path,
        params=jax.device_get(init_params(head, jax.random.key(1))),
        config=config,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        head={"kind": task.head, "labels": own, "task": name},
        provenance={"made_by": "a test"},
    )
