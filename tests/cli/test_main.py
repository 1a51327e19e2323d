# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: help, flags, errors, exit statuses."""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import albert_jax
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.push import push
from albert_jax.cli import commands, parse
from albert_jax.cli import main as cli
from albert_jax.config.model import MODELS
from albert_jax.config.run import PretrainConfig
from albert_jax.data.prepare.build import prepare
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.inference.export import export_serving
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.documents import parsed as _parsed
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import make_store
from tests.helpers.task_models import task_model

RECIPE = REPOSITORY / "configs" / "python_docs.py"


def _takes_less_than(seconds: float, code: str) -> bool:
    """Whether one of three new interpreters needs less processor time; others use the machine."""
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL
        )
        used = [b - a for a, b in zip(before[2:4], os.times()[2:4], strict=True)]  # of children
        if sum(used) < seconds:
            return True
    return False


# -------------------------------------------------------------------------------- help and start-up


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example_and_comes_without_jax_within_a_second(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    printed = capsys.readouterr()
    assert (exit.value.code or 0, printed.err) == (0, "")
    assert f"Example: albert-jax {command} " in printed.out
    code = (
        "import sys; from albert_jax.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        # What reads vocabularies is slow to import too.
        "sys.exit(bool({'jax', 'sentencepiece', 'google.protobuf'} & sys.modules.keys()))"
    )
    assert _takes_less_than(1.0, code)


def test_the_overview_names_every_command(run_cli: Callable[..., Any]) -> None:
    result = run_cli("--help")
    assert (result.rc, result.stderr) == (0, "")
    assert set(cli.COMMANDS) <= set(result.stdout.split())
    assert run_cli("--version").stdout == f"albert-jax {albert_jax.__version__}\n"


def test_importing_the_package_is_instant_and_its_names_resolve() -> None:
    assert _takes_less_than(0.3, "import albert_jax")
    for name in albert_jax.__all__:
        assert getattr(albert_jax, name) is not None
        assert name in dir(albert_jax)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = albert_jax.nothing


# ------------------------------------------------------------------------------------------ parsing


def _examples() -> list[str]:
    found = [re.search(r"Example: (.*)", c.__doc__ or "") for c in cli.COMMANDS.values()]
    return [match.group(1) for match in found if match]


@pytest.mark.parametrize("line", _examples())
def test_each_helps_example_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert type(_parsed(line)) in cli.COMMANDS.values()


def _help(command: str) -> str:
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a StringIO gets no boxes
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    page.seek(0)
    return page.read()


def test_recipe_values_are_the_defaults_and_flags_change_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from albert_jax.config import *\n"
        "def get_config(model='base-v2'):\n"
        "    return PretrainConfig(model=model_config(model), train=TrainConfig(steps=7))\n"
    )
    config = _parsed(f"albert-jax pretrain {recipe}:model=large-v2").config
    assert (config.model, config.train.steps) == (MODELS["large-v2"], 7)
    command = _parsed(
        f"albert-jax pretrain {recipe} --train.batch-size 512 --model.num_hidden_layers=6 "
        "--text a.txt b.txt --optimizer.learning-rate 1e-3 --examples.no-favor-shorter-ngram "
        "--compute.dtype bfloat16 --store s --dry-run"
    )
    base = PretrainConfig()
    expected = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_hidden_layers=6),
        compute=dataclasses.replace(base.compute, dtype="bfloat16"),
        examples=dataclasses.replace(base.examples, favor_shorter_ngram=False),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
        train=dataclasses.replace(base.train, batch_size=512, steps=7),
        text=("a.txt", "b.txt"),
        store="s",
    )
    assert command == commands.Pretrain(config=expected, dry_run=True)


@pytest.mark.parametrize(
    "arguments",
    [
        "pretrain RECIPE --text text.txt --workdir gs://bucket/run",
        "finetune --model mini --task sst2 --data . --workdir gs://bucket/run",
        "train-tokenizer text.txt --vocab-size 300 --output gs://bucket/vocab",
        "predict --model mini --input text.txt --output gs://bucket/answers.jsonl",
        "encode mini hello --output gs://bucket/vectors.npz",
        "convert mini gs://bucket/model --to hf",
        "export . gs://bucket/model",
        "export-serving mini gs://bucket/served",
    ],
)
def test_what_is_written_here_is_not_named_by_an_address(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("A list is open.\n")
    before = sorted(tmp_path.iterdir())
    words = arguments.replace("RECIPE", f"{REPOSITORY}/configs/python_docs.py").split()
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"gs://bucket/\S+ is an address; (give a path|mount the bucket)", line)
    assert sorted(tmp_path.iterdir()) == before  # no folder "gs:"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("pretrain RECIPE --text . --workdir=", "'' is no path; give one"),
        (
            "pretrain RECIPE --store store --workdir run --init-from tuned",
            "--init-from tuned has no masked-LM head to train; give a pretrained model",
        ),
        ("finetune --model mini --task single --data table --workdir=", "'' is no path; give one"),
        (
            "finetune --model mini --task single --data table --workdir run --texts text label",
            "the column 'label' twice",
        ),
        ("evaluate --suite card --data table --model", "must be a list of models"),
        ("evaluate --model tuned --data table --examples 3", "--examples are for --store"),
        (
            "evaluate --suite card --data table --model tuned --masking word",
            "--masking, --examples,",
        ),
        ("prepare text.txt --vocab mini --output tuned", "tuned is a model directory; name a new"),
        ("prepare text.txt --vocab mini --output=", "'' is no path; give one"),
        ("prepare store --vocab mini --output new", "store is a token store or a model, not text"),
        (
            "finetune --model mini --task single --data table --workdir run --class-weights "
            "balanced a=2",
            "--class-weights 'balanced,a=2' must be balanced, or LABEL=WEIGHT",
        ),
        ("export tuned-run new", "of a fine-tuning run; its model is tuned-run/model"),
    ],
)
def test_slips_are_told_in_a_sentence_and_leave_nothing(
    arguments: str,
    told: str,
    slips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(slips)
    before = sorted(slips.rglob("*"))
    words = arguments.replace("RECIPE", f"{REPOSITORY}/configs/from_mini.py").split()
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert sorted(slips.rglob("*")) == before


@pytest.fixture(scope="module")
def slips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a table, a store, a fine-tuned model and the folder of a run."""
    folder = tmp_path_factory.mktemp("slips")
    (folder / "text.txt").write_text("A list is open.\n")
    (folder / "table").mkdir()
    for split in ("train", "dev"):
        (folder / "table" / f"{split}.csv").write_text("text,label\na list,a\na file,b\n")
    task_model(folder / "tuned", "single")
    (folder / "tuned-run").mkdir()
    (folder / "tuned-run" / "model").symlink_to(folder / "tuned")
    (folder / "tuned-run" / "config.json").write_text("{}")
    make_store(folder)
    return folder


def test_a_recipe_hears_of_the_model_that_a_flag_names() -> None:
    def settings(arguments: str) -> tuple[object, ...]:
        config = _parsed(f"albert-jax finetune {REPOSITORY}/configs/{arguments}").config
        return config.model, config.optimizer.learning_rate, config.dropout, config.compute.remat

    assert settings("race.py --model base-v1") == ("base-v1", 2e-5, 0.1, "none")
    assert settings("race.py --model=runs/a-v1 --data d") == ("runs/a-v1", 2e-5, 0.1, "none")
    assert settings("race.py --data d --model xlarge-v2") == ("xlarge-v2", 1e-5, 0.0, "full")
    assert settings("race.py:model=base-v1 --model base-v2") == ("base-v2", 2e-5, 0.1, "none")


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("glue.py --task cola", "glue.py:task=cola"),
        ("squad.py --task=SQuAD1", "squad.py:task=squad1"),
    ],
)
def test_a_recipe_hears_of_the_task_that_a_flag_names(flag: str, argument: str) -> None:
    def config(arguments: str) -> Any:
        return _parsed(f"albert-jax finetune {REPOSITORY}/configs/{arguments}").config

    asked = config(argument)
    assert dataclasses.replace(config(flag), task=asked.task) == asked
    with pytest.raises(UserError, match="'single' has no settings in this recipe"):
        config("glue.py --task single")


def _flags(config: Any, prefix: str = "--") -> list[str]:
    flags = []
    for field in dataclasses.fields(config):
        name = f"{prefix}{field.name.replace('_', '-')}"
        value = getattr(config, field.name)
        flags += _flags(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return flags


def _rows_of_help(command: str) -> list[str]:
    """The rows of a help page, each with its flag first."""
    page = re.sub(r",\s+│\n│ (?=--)", ", ", _help(command))  # a pair too long for one line
    return [row.replace("│", " ") for row in re.split(r"^│ (?=-)", page, flags=re.M)]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_every_setting_is_a_flag_with_help(command: str) -> None:
    rows = _rows_of_help(command)
    for flag in _flags(parse.RECIPES[cli.COMMANDS[command]]()):
        row = next((row for row in rows if re.match(rf"{re.escape(flag)}[ ,]", row)), "")
        assert re.search(r"(\n\s+|\s{2,})[\w`].*\(default:", row, re.S), flag


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_misspelt_flag_is_compared_with_the_flags_of_the_help(command: str) -> None:
    names = [re.match(r"(-[^\s,]+(?:, -[^\s,]+)*)", row) for row in _rows_of_help(command)]
    of_help = [flag for match in names if match for flag in match.group(1).split(", ")]
    assert sorted(of_help) == sorted(["-h", "--help", *parse.flags_of(cli.COMMANDS[command])])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_field_of_a_command_has_its_comment(command: str) -> None:
    fields = dataclasses.fields(cli.COMMANDS[command])  # type: ignore[arg-type]
    kinds = cli.COMMANDS[command].__mro__[:-1]
    source = "".join(inspect.getsource(kind) for kind in kinds)
    for field in fields:
        assert re.search(rf'^    {field.name}: .*\n    """', source, re.M) or field.name == "config"


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (commands.TrainTokenizer, train_tokenizer),
        (commands.Prepare, prepare),
        (commands.Convert, convert),
        (commands.Push, push),
        (commands.ExportServing, export_serving),
    ],
)
def test_flags_have_the_names_and_defaults_of_the_python_call(
    command: type, function: Callable[..., Any]
) -> None:
    parameters = inspect.signature(function).parameters
    given = {f.name: f.default for f in dataclasses.fields(command) if f.name in parameters}
    assert len(given) >= 3
    for name, default in given.items():
        wanted = parameters[name].default
        missing = default is dataclasses.MISSING and wanted is inspect.Parameter.empty
        assert missing or default == wanted, name


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("prtrain", "unknown command 'prtrain' (did you mean pretrain?)"),
        ("--helpp", "unknown command '--helpp'"),
        ("prepare a --vcab x", "unknown flag --vcab (did you mean --vocab?)"),
        ("prepare a --vocab x", "Missing from albert-jax prepare: --output STR"),
        ("prepare a --vocab x --output y --workers n", "--workers: "),
        ("prepare a --vocab x --output y --mode bert", "invalid choice 'bert'"),
        ("export a", "DEST"),
        ("export a b c", "Unrecognized options: c"),
        ("fill-mask", "MODEL"),
        ("pretrain --train.bath-size=3", "(did you mean --train.batch-size?)"),
        ("pretrain --model.num-hiden-layers 3", "(did you mean --model.num-hidden-layers?)"),
        ("pretrain --train.batch-size many", "--train.batch-size: 'many' is no whole number; see"),
        ("fill-mask mini x --top-k 1.5", "--top-k: '1.5' is no whole number; see albert-jax"),
        ("pretrain --optimizer.learning-rate fast", "learning-rate: 'fast' is no number; see"),
        ("pretrain --train.devices two", "--train.devices: 'two' is no whole number; see"),
        ("pretrain --train.batch-size 0", "--train.batch-size 0 must be at least 1"),
        ("pretrain --train.batch-size", "Missing value for argument '--train.batch-size'"),
        ("pretrain --compute.dtype half", "Expected one of ('float32', 'bfloat16', 'auto')"),
        ("pretrain --model.hidden-size 100", "--model.hidden-size 100 is not a multiple"),
        ("pretrain --train.steps 3 recipe.py", "Unrecognized options: recipe.py"),
        ("pretrain none.py", "recipe none.py does not exist"),
        ("pretrain configs/python_docs.py:stps=3", "(did you mean 'steps'?)"),
        ("info nowhere", "nowhere does not exist"),
        ("info tests", "is no model directory"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(
    line: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"albert-jax: [^\n]+\n", printed.err)
    assert says in printed.err


@pytest.mark.parametrize("flag", ["--store", "--guard.patience", "--examples.do-whole-word-mask"])
def test_a_misspelt_flag_names_the_nearest(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (flag[:-1], flag.replace("-", "_").replace("__", "--") + "x", flag[:4] + flag[5:]):
        assert cli.main(["pretrain", wrong, "1"]) == 2
        assert f"(did you mean {flag}?)" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_mistake_is_told_alike_whatever_stdout_can_write(
    encoding: str, run_cli: Callable[..., Any]
) -> None:
    result = run_cli("prepare", "a", "--vocab", "x", env={"PYTHONIOENCODING": encoding})
    assert (result.rc, result.stdout) == (2, "")
    assert result.stderr == (
        "albert-jax: Missing from albert-jax prepare: --output STR; see albert-jax prepare --help\n"
    )


def test_completions_of_a_shell_are_printed(run_cli: Callable[..., Any]) -> None:
    result = run_cli("prepare", "--tyro-print-completion", "bash")
    assert (result.rc, result.stderr) == (0, "")
    assert "--holdout" in result.stdout


def test_a_mistake_ends_a_process_with_status_2(run_cli: Callable[..., Any]) -> None:
    result = run_cli("info", "no where")
    assert (result.rc, result.stdout) == (2, "")
    assert result.stderr == (
        "albert-jax: no where does not exist; give a model directory, a model's name, a token "
        "store or a recipe\n"
    )


def _raising(error: BaseException) -> Callable[[Any], None]:
    def run(_: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("raised", "status", "stderr"),
    [
        (UserError("a\nb"), 2, "albert-jax: a b\n"),
        (TryAgain("preempted"), 75, "albert-jax: preempted\n"),
        (PermissionError(13, "Permission denied", "f"), 2, "albert-jax: f: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_statuses(
    raised: BaseException,
    status: int,
    stderr: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands.Verify, "run", _raising(raised))
    assert cli.main(["verify", "model"]) == status
    assert capsys.readouterr().err == stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.Verify, "run", _raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        cli.main(["verify", "model"])


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "albert_jax", "info", str(RECIPE)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()  # before it has started: what it prints finds no reader
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


# --------------------------------------------------------------------------------------- real runs


def _text() -> str:
    """80 paragraphs of 5 sentences of 8 words out of 11."""
    words = ["the", "value", "of", "a", "list", "returns", "strings", "with", "its", "key", "index"]
    sentences = [" ".join(words[(i * k) % 11] for k in range(1, 9)) + "." for i in range(400)]
    return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, 400, 5))


def test_text_becomes_a_vocabulary_and_a_store_that_info_describes(
    tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    (tmp_path / "my text.txt").write_text(_text(), encoding="utf-8")

    def run(*arguments: str) -> Any:
        result = run_cli(*arguments, cwd=tmp_path)
        assert result.rc == 0, result.stderr
        return result

    text = "my text.txt"
    made = run("train-tokenizer", text, "--vocab-size", "36", "--output", "vocab")
    assert made.stdout == f"vocab{os.sep}spiece.model\n"
    store = ("prepare", text, "--vocab", "vocab", "--output", "store", "--holdout", "0.1")
    manifest = json.loads(run(*store, "--workers", "1", "--json").stdout)
    assert manifest == json.loads((tmp_path / "store" / "manifest.json").read_text())
    described = json.loads(run("info", "store", "--json").stdout)
    assert described["kind"] == "token store"
    train = described["splits"]["train"]
    assert train["documents"] == manifest["splits"]["train"]["documents"] > 0
    assert f"{train['tokens']:,}" in run("info", "store").stdout
    assert run(*store).stdout == "store\n"  # complete already


def test_a_vocabulary_and_a_store_become_a_model_that_fills_in_a_mask(
    tmp_path: Path, run_cli: Callable[..., Any], run_warm: Callable[..., Any]
) -> None:
    (tmp_path / "some text.txt").write_text(_text(), encoding="utf-8")
    settings = ["--model.hidden-size=32", "--model.num-hidden-layers=2"]
    settings += ["--model.num-attention-heads=2", "--model.intermediate-size=64"]
    settings += ["--model.vocab-size=36", "--model.embedding-size=16"]
    settings += ["--examples.max-seq-length=32", "--examples.max-predictions-per-seq=5"]
    settings += [
        "--train.steps=2",
        "--train.batch-size=4",
        "--train.eval-examples=8",
        "--train.devices=1",
    ]

    def run(*arguments: str, by: Callable[..., Any] = run_warm) -> str:
        # Relative paths, as a user types them.
        result = by(*arguments, cwd=tmp_path, timeout=280)
        assert result.rc == 0, result.stderr
        return result.stdout

    run("pretrain", *settings, "--text", "some text.txt", "--workdir", "run", by=run_cli)
    answers = json.loads(
        run("fill-mask", "run/model", "the [MASK] of a list", "--top-k", "3", "--json")
    )
    assert [set(answer) for answer in answers] == [{"score", "token", "token_str", "sequence"}] * 3
    described = json.loads(run("info", "run", "--json"))
    assert described["config"]["hidden_size"] == 32
    run("export", "run", "copy of the model")
    assert json.loads(run("info", "copy of the model", "--json"))["config"] == described["config"]


def test_info_counts_a_recipes_parameters(run_cli: Callable[..., Any]) -> None:
    result = run_cli("info", RECIPE, "--json")
    assert (result.rc, result.stderr) == (0, "")
    described = json.loads(result.stdout)
    assert described["kind"] == "recipe"
    # By hand: V=4000, E=64, H=128, I=512, 128 positions, 2 segments, one shared layer.
    embeddings = (4000 + 2 + 128 + 2) * 64 + 64 * 128 + 128
    layer = 4 * (128 * 128 + 128) + 128 * 512 + 512 + 512 * 128 + 128 + 4 * 128
    heads = 128 * 128 + 128 + (128 * 64 + 64) + 2 * 64 + 4000 + (2 * 128 + 2)
    assert described["parameters"] == embeddings + layer + heads
