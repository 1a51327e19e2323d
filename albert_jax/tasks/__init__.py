# SPDX-License-Identifier: Apache-2.0
"""List the tasks that can be fine-tuned, evaluated and predicted, by name."""

from __future__ import annotations

from albert_jax.config.task_names import task_name
from albert_jax.tasks.base import Features, RawExample, Task
from albert_jax.tasks.custom import CUSTOM
from albert_jax.tasks.glue import GLUE
from albert_jax.tasks.multi_label import MULTI_LABEL
from albert_jax.tasks.race import RaceTask
from albert_jax.tasks.similarity import SIMILARITY
from albert_jax.tasks.squad import SQUAD_TASKS

__all__ = ["TASKS", "Features", "RawExample", "Task", "find_task"]

TASKS: dict[str, Task] = {
    **{task.name: task for task in GLUE},
    **SQUAD_TASKS,
    "race": RaceTask(name="race"),
    "race-middle": RaceTask(name="race-middle", levels=("middle",)),
    "race-high": RaceTask(name="race-high", levels=("high",)),
    **{task.name: task for task in (*CUSTOM, SIMILARITY, MULTI_LABEL)},  # a user's own files
}


def find_task(name: str) -> Task:
    """Return the task of that name, without regard to case and hyphens (SST-2, sst2).

    Raises UserError for an unknown name.
    """
    return TASKS[task_name(name)]
