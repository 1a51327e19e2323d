# SPDX-License-Identifier: Apache-2.0
"""An error names a setting as its reader writes it: a flag of a command, an argument in Python.

Code that a command and Python share asks `wording.setting` for the name, so no text there has a
flag of its own.
"""

import ast
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import albert_jax
from albert_jax import UserError
from albert_jax.cli import main as cli
from albert_jax.cli.commands import COMMANDS
from albert_jax.cli.parse import flags_of
from albert_jax.config import AlbertConfig, BenchmarkConfig, FinetuneConfig, TrainConfig
from tests.helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "albert_jax"

# Texts with a flag that no reader of an error sees, by file and a part of the text.
ALLOWED = {
    ("data/prepare/beam_runner.py", "--runner="): "Beam's own options",
    ("utils/provenance.py", "--error-unmatch"): "an option of git",
    ("utils/provenance.py", "--porcelain"): "an option of git",
    ("utils/wording.py", "--no-"): "makes the flags",
}

# Threads without the naming of the one that starts them, which raise no error that names a setting.
SILENT = {
    ("data/loader.py", "_exit_with_parent"),
    ("distributed/multihost.py", "_part"),
    ("distributed/multihost.py", "state.client.key_value_set"),
    ("training/guards.py", "self._watch"),
    ("utils/interrupts.py", "self._wait"),
}

# Names that are keys of a file, by file.
KEYS = {
    ("config/model.py", "vocab_size"),
    ("data/hf_tokenizer.py", "do_lower_case"),
    ("data/hf_tokenizer.py", "keep_accents"),
}

_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z.-]*=?")
# What stands before a flag in a full command line, which a reader in Python can run too.
_COMMAND = re.compile(r"\b(?:albert-jax|pip|git|gcloud) [^;:,]*$")


def _texts(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module that are no docstrings; a value in an f-string is {}."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings | parts:
            yield node.value


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _flags_in(text: str) -> list[str]:
    """Return the flags that a text names outside of a full command line."""
    return [
        found[0] for found in _FLAG.finditer(text) if not _COMMAND.search(text[: found.start()])
    ]


def _texts_outside_the_commands() -> Iterator[tuple[str, str]]:
    """Yield the texts of the package, each after its file's name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("cli/"):
            for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
                yield name, text


def test_a_flag_in_a_text_is_found_unless_a_command_line_has_it() -> None:
    source = '''
def f(x):
    """Docstrings may name --flags."""
    raise UserError(f"give {x} with --input, or " "name one with --split")
    say(f"run albert-jax predict --data {x} --split {x}; pip install --user a")
    say("run albert-jax predict; then give --output")
    shlex.join(["--texts", x])
'''
    found = [flag for text in _texts(ast.parse(source)) for flag in _flags_in(text)]
    assert sorted(found) == ["--input", "--output", "--split", "--texts"]


def test_no_text_outside_the_commands_has_a_flag_of_its_own() -> None:
    unused, wrong = set(ALLOWED), []
    for name, text in _texts_outside_the_commands():
        for flag in _flags_in(text):
            unused.discard((name, flag))
            if (name, flag) not in ALLOWED:
                wrong.append(f"{name}: {flag} in {text!r}; use wording.setting")
    assert not wrong, "\n".join(wrong)
    assert not unused


def test_no_text_outside_the_commands_has_the_python_name_of_a_flag() -> None:
    flags = {flag[2:].replace("-", "_") for kind in COMMANDS.values() for flag in flags_of(kind)}
    # Names of one word are words of sentences too.
    names = "|".join(re.escape(name) for name in flags if "_" in name or "." in name)
    bare = re.compile(rf"(?<![\w.'`\"/])(?:{names})(?![\w='`\"(./])")
    unused, wrong = set(KEYS), []
    for name, text in _texts_outside_the_commands():
        for found in bare.finditer(text) if " " in text else ():
            unused.discard((name, found[0]))
            if (name, found[0]) not in KEYS:
                wrong.append(f"{name}: {found[0]} in {text!r}; use wording.setting")
    assert not wrong, "\n".join(wrong)
    assert not unused


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size 0 must be at least 1"),
        (lambda: TrainConfig(batch_size=9, accumulate=2), "divide into train.accumulate 2 micro"),
        (lambda: AlbertConfig(hidden_size=0), "hidden_size 0 must be at least 1"),
        (lambda: FinetuneConfig(early_stopping=1, train=TrainConfig(eval_every=0)), "train.eval_e"),
        (lambda: FinetuneConfig(max_seq_length=4), "max_seq_length 4 is too short"),
        (lambda: albert_jax.finetune(FinetuneConfig()), "no work directory; give workdir='DIR'"),
        (lambda: albert_jax.benchmark(BenchmarkConfig("mini", sequence=4)), "sequence 4 is too"),
        (lambda: albert_jax.convert("mini", "no", config="a"), "leave config out"),
        (
            lambda: albert_jax.convert("mini", "no", vocab="a", no_vocab=True),
            "no_vocab and vocab exclude each other",
        ),
        (lambda: albert_jax.prepare(["a"], vocab="mini", output="no", workers=0), "workers 0 must"),
        (lambda: albert_jax.load("mini").encode("a", layer=99), "layer 99 must be between"),
        (lambda: albert_jax.load("mini").encode("a", long="windows"), "give pool='mean' or pool="),
    ],
)
def test_python_is_told_of_arguments(call, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        call()
    assert not _flags_in(str(error.value))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --train.batch-size 0", "--train.batch-size 0 must be at least 1"),
        ("pretrain --train.batch-size 9 --train.accumulate 2", "into --train.accumulate 2 micro"),
        ("pretrain --train.rate x", "--train.rate 'x' is no schedule"),
        ("pretrain --model.hidden-size 0", "--model.hidden-size 0 must be at least 1"),
        ("finetune --early-stopping 1 --train.eval-every 0", "give --train.eval-every"),
        ("finetune --max-seq-length 4", "--max-seq-length 4 is too short"),
        ("finetune", "no work directory; give --workdir DIR"),
        ("benchmark --model mini --sequence 4", "--sequence 4 is too short"),
        ("benchmark --model mini --dtype half", "--dtype 'half' must be one of"),
        ("convert mini no --config a", "leave --config out"),
        ("convert mini no --vocab a --no-vocab", "--no-vocab and --vocab exclude each other"),
        ("prepare a --vocab mini --output no --workers 0", "--workers 0 must be at least 1"),
        ("encode mini a --layer 99", "--layer 99 must be between"),
        ("encode mini a --long windows", "give --pool mean or --pool cls"),
        ("fill-mask mini [MASK] --top-k 0", "--top-k 0 must be between"),
    ],
)
def test_a_command_is_told_of_flags(
    line: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert cli.main(line.split()) == 2
    told = capsys.readouterr().err
    assert said in told
    with pytest.raises(UserError, match=r"^train\.batch_size 0"):  # afterwards Python is told again
        TrainConfig(batch_size=0)


def test_a_recipe_is_told_of_arguments_in_a_command_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from albert_jax import PretrainConfig, TrainConfig\n"
        "def get_config():\n"
        "    return PretrainConfig(train=TrainConfig(batch_size=0))\n"
    )
    assert cli.main(["pretrain", str(recipe)]) == 2
    assert capsys.readouterr().err == "albert-jax: train.batch_size 0 must be at least 1\n"


def test_a_command_in_a_thread_leaves_the_names_of_other_threads_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_inside, may_leave = threading.Event(), threading.Event()
    told: list[str] = []

    @dataclass
    class Command:
        """Make the same mistake as the other thread, after it."""

        def run(self) -> None:
            is_inside.set()
            assert may_leave.wait(60)
            with pytest.raises(UserError) as error:
                TrainConfig(batch_size=0)
            told.append(str(error.value))

    monkeypatch.setitem(COMMANDS, "wait", Command)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cli.main, ["wait"])
        assert is_inside.wait(60)
        with pytest.raises(UserError, match=r"^train\.batch_size 0"):
            TrainConfig(batch_size=0)
        may_leave.set()
        assert running.result() == 0
    assert told == ["--train.batch-size 0 must be at least 1"]


def test_every_thread_and_process_of_the_package_has_the_naming_of_its_maker() -> None:
    """Every place that makes one also hands on the naming, or is known to need none."""
    makers = {"Thread", "Process", "ThreadPoolExecutor", "ProcessPoolExecutor"}
    bare, known = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name, tree = path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())
        functions = {n.name: ast.unparse(n) for n in ast.walk(tree) if isinstance(n, _FUNCTION)}
        for node in ast.walk(tree):
            is_thread = isinstance(node, ast.ClassDef) and "Thread" in map(_last_name, node.bases)
            if is_thread and "name_as" not in ast.unparse(node):
                bare.append(f"{name}: {node.name}; use wording.name_as")
            if not isinstance(node, ast.Call) or _last_name(node.func) not in makers:
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            target = given.get("target", "")
            said = ast.unparse(node) + functions.get(target.removeprefix("self."), "")
            if (name, target) in SILENT:
                known.add((name, target))
            elif "name_as" not in said and "_start_worker" not in said:
                bare.append(f"{name}: {ast.unparse(node)}; use wording.name_as")
    assert not bare, "\n".join(bare)
    assert known == SILENT


def test_the_processes_of_prepare_name_settings_as_their_parent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        text = "".join(f"Sentence {i} of {name}.\n\n" for i in range(200_000))
        (tmp_path / f"{name}.txt").write_bytes(text.encode() + b"\xff\n")
    files = [str(tmp_path / f"{name}.txt") for name in "ab"]
    output = str(tmp_path / "store")
    line = ["prepare", *files, "--vocab", "mini", "--output", output]
    assert cli.main([*line, "--workers", "2", "--strict"]) == 2
    assert "or leave out --strict to have" in capsys.readouterr().err
    with pytest.raises(UserError, match="or leave out strict to have"):
        albert_jax.prepare(files, vocab="mini", output=output, workers=2, strict=True)
