# SPDX-License-Identifier: Apache-2.0
"""`prepare`'s units of work on an Apache Beam runner instead of processes of this machine.

A unit on a Beam worker does what it does in pool.py: it writes its shards and its record into the
store's folder, which every worker must therefore reach under the same path, as the inputs. So the
bytes are the same, and what was finished before a failure is kept.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from albert_jax.data.store import write_json
from albert_jax.data.units import Job, Unit, prepare_unit, read_record
from albert_jax.errors import UserError
from albert_jax.tokenizer import Tokenizer

# Not DirectRunner, which asks the network for another runner's program first.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def import_beam() -> ModuleType:
    """Apache Beam; UserError names the extra where it is not installed."""
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            "--beam needs Apache Beam, which is not installed; run: pip install 'albert-jax[beam]'"
        ) from None
    return apache_beam


def make_pipeline(options: Sequence[str]) -> Any:
    """A pipeline with Beam's own options, `NAME=VALUE` or `NAME` each; UserError for unknown ones.

    Without `runner=…` it runs in this process.
    """
    beam = import_beam()
    from apache_beam.options import pipeline_options

    given = [f"--{option.lstrip('-')}" for option in options]
    if not any(option.startswith("--runner=") for option in given):
        given.append(f"--runner={LOCAL_RUNNER}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = pipeline_options.PipelineOptions(given)
            known = parsed.get_all_options()
            pipeline = beam.Pipeline(options=parsed)
    except (SystemExit, ValueError, ImportError, AttributeError) as error:
        reason = (said.getvalue().strip() or str(error)).splitlines()[-1]
        raise UserError(f"Beam takes no options {' '.join(options)}: {reason}") from None
    names = [option[2:].partition("=")[0] for option in given]
    if unknown := [name for name in names if name not in known and f"no_{name}" not in known]:
        raise UserError(f"Beam has no pipeline option {unknown[0]}; give --beam NAME=VALUE …")
    return pipeline


def run_units_on_beam(
    units: Sequence[Unit], job: Job, pipeline: Any, tick: Callable[[int], None]
) -> None:
    """Prepares every unit on the pipeline's runner; `tick` hears of it all at the end.

    Raises what the first unit to fail raised, and UserError where the runner's workers wrote to
    another place than this machine's folder.
    """
    if not units:
        return
    beam = import_beam()
    for stale in Path(job.store).glob("progress/error-*.json"):
        stale.unlink()
    (
        pipeline
        | "units" >> beam.Create(list(units), reshuffle=False)
        | "spread" >> beam.Reshuffle()
        | "prepare" >> beam.Map(functools.partial(_prepare, job=job))
    )
    pipeline.run().wait_until_finish()
    for unit in units:
        if (file := _error_file(job, unit)).is_file():
            raise _failure(json.loads(file.read_text(encoding="utf-8")))
        if read_record(unit, job) is None:
            raise UserError(
                f"Beam has run, but unit {unit.name} is not in {job.store}; the workers must reach "
                "the folder under that path: give one of a file system that they share"
            )
    tick(sum(unit.bytes for unit in units))


def _error_file(job: Job, unit: Unit) -> Path:
    return Path(job.store) / "progress" / f"error-{unit.name}.json"


@functools.lru_cache(maxsize=1)
def _tokenizer(job: Job) -> Tokenizer:
    return job.load_tokenizer()


def _prepare(unit: Unit, job: Job) -> str:
    """One unit, on a worker; bad input is written down, since Beam would try it again and again."""
    try:
        prepare_unit(unit, job, _tokenizer(job), lambda _: None)
    except UserError as error:
        write_json(_error_file(job, unit), {"user": str(error)})
    except OSError as error:
        said = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
        write_json(_error_file(job, unit), said)  # on a full disk this fails too, and Beam hears
    return unit.name


def _failure(said: dict[str, Any]) -> Exception:
    if "user" in said:
        return UserError(said["user"])
    return OSError(said["errno"], said["strerror"], said["filename"])
