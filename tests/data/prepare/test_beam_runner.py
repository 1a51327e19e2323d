# SPDX-License-Identifier: Apache-2.0
"""`prepare --beam`: the local workers' store byte for byte; what goes wrong there is one line."""

import gzip
import importlib.util
import sys
from functools import partial

import pytest

from albert_jax.data.prepare import build as module
from albert_jax.data.prepare import units
from albert_jax.data.prepare.beam_runner import run_units_on_beam
from albert_jax.data.prepare.build import prepare
from albert_jax.utils.errors import UserError
from tests.helpers.fake_beam import FakeBeam
from tests.helpers.paths import VOCABULARY
from tests.helpers.texts import UNIT_BYTES, contents, make_text

# Beam is left out of the locks: it holds protobuf back and brings pyarrow and grpc along.
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed (the extra `beam`, which no lock has)",
)


@pytest.fixture
def fake_beam(monkeypatch):
    fake = FakeBeam()
    monkeypatch.setattr("albert_jax.data.prepare.beam_runner.import_beam", lambda: fake)
    monkeypatch.setattr(module, "make_pipeline", lambda options: fake)
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", UNIT_BYTES)
    return fake


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beam")
    return [make_text(folder / f"{i}.txt", 800_000, seed=i) for i in range(3)]


def test_units_in_any_order_make_the_same_store(fake_beam, corpus, tmp_path):
    for name, where in (("local", {"workers": 1}), ("beam", {"beam": ()})):
        prepare(corpus[0], vocab=VOCABULARY, output=tmp_path / name, progress=False, **where)
    assert contents(tmp_path / "local") == contents(tmp_path / "beam")
    assert len(fake_beam.units) > 3


def test_bad_input_found_by_a_worker_is_said_here_and_the_rest_is_kept(
    fake_beam, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "albert_jax.data.prepare.forecast.SAMPLE_CHARS", 1000
    )  # or it is found before
    inputs = [make_text(tmp_path / f"{i}.txt", 2 * UNIT_BYTES) for i in range(2)]
    packed = gzip.compress(make_text(tmp_path / "text", 8 * UNIT_BYTES).read_bytes(), 1)
    (tmp_path / "bad.gz").write_bytes(packed[:-9])
    store = tmp_path / "store"
    again = partial(
        prepare, [*inputs, tmp_path / "bad.gz"], vocab=VOCABULARY, output=store, beam=()
    )
    with pytest.raises(UserError, match=r"bad\.gz is a damaged gz file"):
        again(progress=False)
    assert len(list((tmp_path / "store" / "progress").glob("[0-9]*.json"))) >= 2
    # Mended, the same call goes on and what went wrong before is forgotten.
    (tmp_path / "bad.gz").write_bytes(packed)
    again(progress=False)
    assert not (tmp_path / "store" / "progress").exists()


def test_a_full_disk_at_a_worker_is_one_here(fake_beam, corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "shard")

    monkeypatch.setattr("albert_jax.data.prepare.beam_runner.prepare_unit", full)
    with pytest.raises(UserError, match="is full"):
        prepare(corpus[0], vocab=VOCABULARY, output=tmp_path / "s", beam=(), progress=False)
    assert not (tmp_path / "s").exists()


def test_workers_that_write_elsewhere_are_found_out(fake_beam, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("albert_jax.data.prepare.beam_runner.prepare_unit", lambda *_: None)
    with pytest.raises(UserError, match="the workers must reach it under that path"):
        prepare(corpus[0], vocab=VOCABULARY, output=tmp_path / "s", beam=(), progress=False)


def test_nothing_left_to_do_runs_no_pipeline():
    run_units_on_beam([], None, None, None)


def test_without_beam_the_extra_is_named(monkeypatch, tmp_path, corpus):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'albert-jax\[beam\]'"):
        prepare(corpus, vocab=VOCABULARY, output=tmp_path / "s", beam=(), progress=False)
    assert not (tmp_path / "s").exists()


def test_workers_are_not_for_beam(tmp_path, corpus):
    with pytest.raises(UserError, match="direct_num_workers"):
        prepare(corpus, vocab=VOCABULARY, output=tmp_path / "s", beam=(), workers=2, progress=False)


@needs_beam
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("direct_num_workers=2", "direct_running_mode=multi_processing"),
        ("runner=PortableRunner", "job_endpoint=embed", "environment_type=LOOPBACK"),
    ],
    ids=["one process", "two processes", "portable"],
)
def test_beam_makes_the_store_of_the_local_workers(run_cli, corpus, tmp_path, options):
    prepare(corpus, vocab=VOCABULARY, output=tmp_path / "local", workers=1, progress=False)
    arguments = (*corpus, "--vocab", VOCABULARY, "--output", tmp_path / "beam", "--beam", *options)
    done = run_cli("prepare", *arguments, timeout=240)
    assert done.rc == 0, done.stderr
    assert len(list((tmp_path / "local" / "train").glob("*.tokens"))) == 3
    assert contents(tmp_path / "local") == contents(tmp_path / "beam")


@needs_beam
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("runner=NoSuchRunner", "NoSuchRunner"),
        ("direct_num_workers=many", "invalid int value"),
        ("no_such_option=1", "no_such_option"),
    ],
)
def test_options_that_beam_does_not_know_are_one_line(run_cli, corpus, tmp_path, option, said):
    arguments = (corpus[0], "--vocab", VOCABULARY, "--output", tmp_path / "s", "--beam", option)
    done = run_cli("prepare", *arguments)
    assert done.rc == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
