# SPDX-License-Identifier: Apache-2.0
"""The top of the package: what it offers, where it comes from, that it waits for nothing."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import albert_jax
from albert_jax.cli.commands import COMMANDS
from albert_jax.utils.results import Result
from tests.helpers.paths import REPOSITORY, VOCABULARY
from tests.helpers.pretraining_runs import write_corpus

# What answers each command in Python; a name with a dot is a method of what `load` returns.
CALLS = {
    "train-tokenizer": ["train_tokenizer"],
    "prepare": ["prepare"],
    "pretrain": ["pretrain", "describe_plan"],
    "finetune": ["finetune"],
    "evaluate": ["evaluate", "evaluate_on_store", "evaluate_card"],
    "predict": ["predict", "predict_file", "predict_split"],
    "fill-mask": ["Albert.fill_mask"],
    "encode": ["Albert.encode"],
    "score-order": ["Albert.score_order"],
    "info": ["info"],
    "export": ["export"],
    "export-serving": ["export_serving"],
    "convert": ["convert"],
    "push": ["push"],
    "verify": ["verify"],
    "benchmark": ["benchmark", "sweep"],
    "estimate": ["estimate", "find_batch"],
}
FUNCTIONS = [name for names in CALLS.values() for name in names]


def _called(name: str) -> typing.Any:
    found: typing.Any = albert_jax
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_every_command_has_its_call() -> None:
    assert CALLS.keys() == COMMANDS.keys()
    for name in FUNCTIONS:
        assert inspect.isfunction(_called(name)), name
        assert name.partition(".")[0] in albert_jax.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_calls_arguments_and_result_are_declared(name: str) -> None:
    """An editor completes what has a name and a type: no `**kwargs` of anything."""
    function = _called(name)
    hints = typing.get_type_hints(function)
    assert "return" in hints
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self":
            assert parameter.annotation is not parameter.empty, parameter
        if parameter.kind is parameter.VAR_KEYWORD:
            assert typing.get_origin(hints[parameter.name]) is typing.Unpack


def test_checkers_of_types_and_the_interpreter_find_the_same_names() -> None:
    """`if TYPE_CHECKING` imports each late name from the module that it comes from when used."""
    tree = ast.parse((REPOSITORY / "albert_jax" / "__init__.py").read_text())
    (block,) = (x for x in tree.body if isinstance(x, ast.If))
    declared = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    late = {
        name: "albert_jax" if module is None else f"albert_jax.{module}"
        for name, module in albert_jax._LATE.items()
    }
    assert declared == late
    assert late.keys() <= set(albert_jax.__all__)
    assert len(set(albert_jax.__all__)) == len(albert_jax.__all__)
    assert set(albert_jax.__all__) <= set(dir(albert_jax))


def test_no_name_hides_a_package() -> None:
    """`import albert_jax.data` must never give something else."""
    folders = {path.parent.name for path in (REPOSITORY / "albert_jax").glob("*/__init__.py")}
    assert not folders & set(albert_jax.__all__)
    for module in ("training.pretrain", "training.finetune", "inference.predict", "cli.info"):
        found = importlib.import_module(f"albert_jax.{module}")
        assert inspect.ismodule(found)


def test_settings_and_text_are_at_hand_without_jax() -> None:
    code = (
        "import sys, albert_jax; albert_jax.PretrainConfig(); albert_jax.BenchmarkConfig();"
        "dir(albert_jax); from albert_jax import prepare, train_tokenizer, Tokenizer;"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_mypy_knows_what_the_calls_return(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import albert_jax\n"
        "config = albert_jax.PretrainConfig(store='store', workdir='run')\n"
        "reveal_type(albert_jax.pretrain(config))\n"
        "reveal_type(albert_jax.evaluate(None, 'model', 'data').metrics)\n"
        "reveal_type(albert_jax.load('model').predict('text'))\n"
        "reveal_type(albert_jax.load('model').predict(['text']))\n"
        "albert_jax.predict_file('model', 'in', 'out', pak=512)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(program)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    told = done.stdout
    for revealed in (
        "pretrain_results.PretrainResult",
        "dict[str, int",
        "answers.Answer",
        "Rows[albert",
    ):
        assert revealed in told, told
    assert 'Unexpected keyword argument "pak"' in told


def test_a_store_is_described_as_the_command_prints_it(tmp_path: Path, run_cli) -> None:
    corpus = write_corpus(tmp_path / "text", 8)
    store = albert_jax.prepare(
        corpus, vocab=VOCABULARY, output=tmp_path / "store", holdout=0.2, workers=1, progress=False
    )
    assert isinstance(store, Result)
    assert store == json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert type(store).from_json(json.loads(json.dumps(store))) == store
    assert f"{store.manifest.splits.train.documents}" in repr(store)
    assert "shards" not in repr(store)
    described = albert_jax.info(tmp_path / "store")
    assert described.kind == "token store"
    printed = run_cli("info", tmp_path / "store", "--json").stdout
    assert described == json.loads(printed)
    assert type(described).from_json(json.loads(printed)) == described
