# SPDX-License-Identifier: Apache-2.0
"""Run `prepare`'s units of work on an Apache Beam runner instead of processes of this machine.

A unit on a Beam worker does the same as in local_runner.py: it writes its shards and its record
into the store. Every worker must reach the store and the inputs under the same path or address.
Therefore the bytes are the same, and what was finished before a failure is kept.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from albert_jax.data.prepare.storage import open_place
from albert_jax.data.prepare.units import Job, Unit, prepare_unit, read_unit_records
from albert_jax.data.store_manifest import json_bytes
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.json_files import decode_json
from albert_jax.utils.wording import Naming, current_naming, named_as, setting

# Not DirectRunner, which first asks the network for another runner's program.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def import_beam() -> ModuleType:
    """Return Apache Beam; raises UserError, which names the extra, if it is not installed."""
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            f"{setting('beam')} needs Apache Beam, which is not installed; run: pip install "
            "'albert-jax[beam]'"
        ) from None
    return apache_beam


def make_pipeline(options: Sequence[str]) -> Any:
    """Return a pipeline with Beam's own options, `NAME=VALUE` or `NAME` each.

    Without `runner=…` it runs in this process. Raises UserError for unknown options.
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
    except TryAgain:  # a signal came
        raise
    except (SystemExit, Exception) as error:  # a runner's own kinds, as of Google's clients
        reason = (said.getvalue().strip() or str(error) or repr(error)).splitlines()[-1]
        raise UserError(f"Beam takes no options {' '.join(options)}: {reason}") from None
    names = [option[2:].partition("=")[0] for option in given]
    if unknown := [name for name in names if name not in known and f"no_{name}" not in known]:
        raise UserError(
            f"Beam has no pipeline option {unknown[0]}; give {setting('beam')} NAME=VALUE …"
        )
    return pipeline


def run_units_on_beam(
    units: Sequence[Unit], job: Job, pipeline: Any, tick: Callable[[int], None]
) -> None:
    """Prepare every unit on the pipeline's runner; `tick` is called once, at the end.

    Raises the exception of the first unit that fails, and UserError if the workers wrote to another
    place than this machine's folder.
    """
    if not units:
        return
    beam = import_beam()
    place = open_place(job.store)
    errors = (name for name in place.entries("progress") if name.startswith("error-"))
    place.remove(f"progress/{name}" for name in errors)
    (
        pipeline
        | "units" >> beam.Create(list(units), reshuffle=False)
        | "spread" >> beam.Reshuffle()
        | "prepare" >> beam.Map(functools.partial(_prepare, job=job, naming=current_naming()))
    )
    pipeline.run().wait_until_finish()
    for name, said in place.read(map(_error_file, units)).items():
        hint = "run the same command again"
        raise decode_json(said, _Failure, name=f"{place.name}/{name}", hint=hint).error()
    for unit, record in zip(units, read_unit_records(units, job), strict=True):
        if record is None:
            raise UserError(
                f"Beam has run, but unit {unit.name} is not in {job.store}; the workers must reach "
                "it under that path: give a folder of a file system that they share, or gs://…"
            )
    tick(sum(unit.bytes for unit in units))


@dataclass(frozen=True)
class _Failure:
    """Record an exception of a worker: bad input, or an error of the file system."""

    user: str | None = None
    errno: int | None = None
    strerror: str | None = None
    filename: str | None = None

    def error(self) -> Exception:
        """Return the exception."""
        if self.user is not None:
            return UserError(self.user)
        return OSError(self.errno, self.strerror, self.filename)


def _error_file(unit: Unit) -> str:
    return f"progress/error-{unit.name}.json"


@functools.lru_cache(maxsize=1)
def _tokenizer(job: Job) -> Tokenizer:
    return job.load_tokenizer()


def _prepare(unit: Unit, job: Job, naming: Naming) -> str:
    """Prepare one unit on a worker.

    An error of the input is returned as text, because Beam would try again and again.
    """
    try:
        with named_as(naming):  # as the errors of the command or call
            prepare_unit(unit, job, _tokenizer(job), lambda _: None)
    except UserError as error:
        _tell(job, unit, _Failure(user=str(error)))
    except OSError as error:  # on a full disk writing this fails too, and Beam reports it
        name = None if error.filename is None else str(error.filename)
        _tell(job, unit, _Failure(errno=error.errno, strerror=error.strerror, filename=name))
    return unit.name


def _tell(job: Job, unit: Unit, failure: _Failure) -> None:
    open_place(job.store).write(_error_file(unit), json_bytes(asdict(failure)))
