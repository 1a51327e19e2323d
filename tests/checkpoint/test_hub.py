# SPDX-License-Identifier: Apache-2.0
"""Models of the hub, from a server on loopback that answers huggingface_hub as the hub does."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import albert_jax
from albert_jax.checkpoint import hub as client
from albert_jax.checkpoint.convert import keep
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.cli import main as cli
from albert_jax.cli.info import describe_path
from albert_jax.config.model_names import name_of
from albert_jax.utils.errors import UserError
from tests.helpers.fake_hub import FakeHub, fake_hub
from tests.helpers.models import noisy_model, worded_albert

constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub")

pytestmark = [
    pytest.mark.extras,
    # An interrupted download is resumed by huggingface_hub with a warning.
    pytest.mark.filterwarnings("ignore::UserWarning:huggingface_hub"),
    # huggingface_hub 2.4 gives its HTTP client a file as this does not want it.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    return noisy_model(folder, tokenizer={"mode": "hf", "do_lower_case": True})


@pytest.fixture(scope="module")
def files(model: Path) -> dict[str, bytes]:
    """A repository's files: a transformers folder, and what no conversion reads."""
    convert(model, model.parent / "hf", to="hf")
    found = {path.name: path.read_bytes() for path in (model.parent / "hf").iterdir()}
    more = {"README.md": b"# It", "tf_model.h5": bytes(99), "onnx/model.onnx": bytes(99)}
    return found | more | {".gitattributes": b"*"}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def told(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends that is given a name."""
    capsys.readouterr()
    assert cli.main(["info", name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("albert-jax: "), lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("albert-jax: ")


def test_a_repository_is_fetched_and_converted_once(
    hub: FakeHub, files: dict[str, bytes], model: Path, tmp_path: Path
) -> None:
    commit = hub.add("me/it", files)
    albert = albert_jax.load("me/it")
    expected = albert_jax.load(model).forward([[2, 10, 11, 3]])
    np.testing.assert_array_equal(
        albert.forward([[2, 10, 11, 3]]).masked_lm_logits, expected.masked_lm_logits
    )
    assert albert.tokenizer.mode == "hf"
    fetched = {request.rpartition("/")[2] for request in hub.asked("GET") if "/resolve/" in request}
    # All but the README and what no conversion reads; tokenizer.json where tokenizers wrote one.
    assert fetched == {"model.safetensors", "spiece.model"} | {
        name for name in files if name.endswith(".json")
    }
    hub.requests.clear()
    kept = require_model_directory("hub:me/it@main")
    assert kept.name == commit
    albert_jax.load("hf://me/it")
    assert describe_path("me/it")["provenance"]["source"] == f"hub:me/it@{commit}"
    assert albert_jax.Tokenizer.load("me/it").path == kept / "spiece.model"
    assert hub.requests == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: FakeHub, files: dict[str, bytes]) -> None:
    first = hub.add("me/it", files)
    settings = json.loads(files["tokenizer_config.json"]) | {"do_lower_case": False}
    cased = files | {"tokenizer_config.json": json.dumps(settings).encode()}
    second = hub.add("me/it", cased, ref="refs/pr/1")
    assert describe_path("me/it@refs/pr/1")["tokenizer"]["do_lower_case"] is False
    assert require_model_directory(f"me/it@{first}").name == first
    requests = len(hub.requests)
    assert require_model_directory(f"me/it@{second}").name == second  # known by its branch
    assert len(hub.requests) == requests
    assert require_model_directory("me/it").name == first
    hub.add("me/it", cased)  # main moves, and what is kept stays
    assert require_model_directory("me/it").name == first


def test_convert_asks_the_hub_each_time_and_says_the_commit(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = hub.add("me/it", files)
    assert convert("hf://me/it", tmp_path / "a").source == f"hub:me/it@{first}"
    second = hub.add("me/it", files | {"README.md": b"# New"})
    assert convert("me/it", tmp_path / "a").source == f"hub:me/it@{second}"
    assert convert(f"hub:me/it@{first}", tmp_path / "b", to="hf").source == f"hub:me/it@{first}"


def test_weights_in_parts_are_fetched_by_their_index(
    hub: FakeHub, files: dict[str, bytes], model: Path
) -> None:
    name = "model-00001-of-00001.safetensors"
    parts = {k: v for k, v in files.items() if k != "model.safetensors"}
    parts[name] = files["model.safetensors"]
    parts["model-00001-of-00001.bin"] = b""
    header = int.from_bytes(parts[name][:8], "little")
    tensors = json.loads(parts[name][8 : 8 + header])
    places = {tensor: name for tensor in tensors if tensor != "__metadata__"}
    parts["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    hub.add("me/parts", parts)
    assert albert_jax.load("me/parts").config == albert_jax.load(model).config
    assert not hub.asked("GET", ".bin")


def test_a_released_model_comes_from_the_hub_where_its_archive_does_not(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(keep, "MODELS", {"base-v2": worded_albert()})
    commit = hub.add("albert/albert-base-v2", files)
    kept = require_model_directory("base-v2")
    assert kept.name == f"hub-{commit}"
    assert f"trying {hub.endpoint}/albert/albert-base-v2" in capsys.readouterr().err
    assert albert_jax.verify("base-v2").released is None  # whose published answers it has not
    hub.requests.clear()
    assert require_model_directory("released:base-v2") == kept
    assert hub.requests == []


# --------------------------------------------------------------------------------- interruptions


def test_an_interrupted_download_goes_on_where_it_was(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/it", files)
    hub.cut["model.safetensors"] = 1000
    ranges = []
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's, before it tries again
    for _ in range(3):  # 2.4 tries again by itself, 0.36 at the next call
        try:
            require_model_directory("me/it")
        except UserError as error:
            ranges.append(str(error))
    assert albert_jax.load("me/it").config == worded_albert()
    assert len(hub.asked("GET", "model.safetensors")) == 2
    assert len(ranges) <= 1


def test_without_a_network_the_copy_of_huggingface_hubs_cache_is_taken(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    commit = hub.add("me/it", files)
    named = name_of("me/it")
    assert named is not None
    client.snapshot(named)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    assert require_model_directory("me/it").name == commit
    sentence = told("me/other", capsys)
    assert sentence.startswith("me/other is not on this disk, and http://127.0.0.1:9 cannot be")
    assert sentence.endswith("run this once with a network, or give a folder")


def test_a_hub_that_is_down_is_as_no_network(
    hub: FakeHub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("me/it", files)
    named = name_of("me/it")
    assert named is not None
    client.snapshot(named)
    hub.is_down = True
    assert require_model_directory("me/it").name == commit
    assert told("me/other", capsys).startswith(
        f"me/other is not on this disk, and {hub.endpoint} cannot be reached (status 500)"
    )


def test_hf_hub_offline_asks_nobody(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, run_cli
) -> None:
    commit = hub.add("me/it", files)
    env = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "ALBERT_JAX_CACHE": str(tmp_path / "own"),
        "HF_HUB_DISABLE_XET": "1",
    }
    ended = run_cli("info", "me/it", env=env | {"HF_HUB_OFFLINE": "1"})
    assert (ended.rc, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("albert-jax: me/it is not on this disk, and ")
    assert hub.requests == []
    assert commit in run_cli("info", "me/it", env=env).stdout


# -------------------------------------------------------------------------------------- refusals


def test_what_the_hub_refuses_is_one_sentence(
    hub: FakeHub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/it", files)
    assert told("me/none", capsys) == (
        f"me/none is no path here, and {hub.endpoint} has no such repository, or it is private; "
        "check the name, or log in with hf auth login, or set HF_TOKEN"
    )
    assert told("me/it@v9", capsys) == (
        "me/it has no revision 'v9'; give one of its branches, tags or commits after the @"
    )
    hub.repositories["me/it"].gated = True
    assert told("me/it", capsys) == (
        f"me/it is gated; accept its conditions at {hub.endpoint}/me/it, and log in with "
        "hf auth login, or set HF_TOKEN"
    )


def test_a_private_repository_is_read_with_the_users_token(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    hub.add("me/it", files)
    hub.repositories["me/it"].private = True
    assert "or it is private" in told("me/it", capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    kept = require_model_directory("me/it")
    assert hub.tokens == {"hf_secret"}
    assert not any(b"hf_secret" in p.read_bytes() for p in kept.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config.json": b'{"model_type": "bert"}'}, "is a model of type bert; albert_jax reads"),
        ({"config.json": b"{"}, "config.json is not readable JSON"),
        ({"config.json": None}, "that albert_jax reads: no config.json (it has .gitattrib"),
        ({"model.safetensors": None}, "that albert_jax reads: none of model.safetensors, "),
        ({"model.safetensors": b"x" * 99}, "cannot be used as it is: "),
    ],
)
def test_wrong_contents_are_one_sentence(
    hub: FakeHub,
    files: dict[str, bytes],
    changes: dict[str, bytes | None],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    hub.add("me/it", {k: v for k, v in (files | changes).items() if v is not None})
    assert expected in told("me/it", capsys)
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_a_repository_without_a_tokenizer_is_a_model_of_ids(
    hub: FakeHub, files: dict[str, bytes]
) -> None:
    hub.add("me/ids", {name: files[name] for name in ("config.json", "model.safetensors")})
    assert albert_jax.load("me/ids").vocabulary is None


def test_a_configuration_of_the_first_releases_is_read_as_it_is_on_disk(
    hub: FakeHub, files: dict[str, bytes]
) -> None:
    values = json.loads(files["config.json"])
    for name in ("model_type", "architectures", "transformers_version"):
        values.pop(name, None)
    values["hidden_act"] = "gelu_new"
    hub.add("me/early", files | {"config.json": json.dumps(values).encode()})
    assert albert_jax.load("me/early").config.hidden_act == "gelu"


def test_a_repository_that_is_no_model_is_told_before_its_weights_are_fetched(
    hub: FakeHub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/bert", files | {"config.json": b'{"model_type": "bert"}'})
    told("me/bert", capsys)
    assert hub.asked("GET", "config.json")
    assert not hub.asked("GET", "model.safetensors")


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("model.safetensors", 1 << 33, "has 8,589,934,592 bytes, over the "),
        ("config.json", 1 << 23, "has 8,388,608 bytes, over the 4,194,304 that"),
        ("spiece.model", 1 << 40, "over the 67,108,864 that an ALBERT"),
        ("spiece.model", -1, "lists spiece.model without a size; refused"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_of_them_is_fetched(
    hub: FakeHub,
    files: dict[str, bytes],
    name: str,
    size: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add("me/it", files)
    hub.repositories["me/it"].sizes[name] = size
    assert expected in told("me/it", capsys)
    assert not hub.asked("GET", f"/{name}")


def test_other_bytes_than_the_hub_lists_are_refused_and_fetched_anew(
    hub: FakeHub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/it", files)
    for name in (
        "special_tokens_map.json",
        "model.safetensors",
    ):  # the second of large-file storage
        hub.corrupted = {name}
        assert f"{name} differs from what the hub lists" in told("me/it", capsys)
    hub.corrupted.clear()
    assert albert_jax.load("me/it").config == worded_albert()


def test_a_users_own_file_behind_a_link_in_the_cache_is_left(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("me/it", files)
    snapshot = tmp_path / "hf" / "models--me--it" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "mine.model").write_bytes(b"mine")
    (snapshot / "spiece.model").symlink_to(tmp_path / "mine.model")
    assert "spiece.model differs from what the hub lists" in told("me/it", capsys)
    assert (tmp_path / "mine.model").read_bytes() == b"mine"
    assert albert_jax.load("me/it").config == worded_albert()


def test_a_password_in_hf_endpoint_is_neither_printed_nor_kept(
    hub: FakeHub,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.add("me/it", files)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//me:s3cr@et@"))
    hub.cut["model.safetensors"] = 1000
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's, before it tries again
    with contextlib.suppress(UserError):  # 0.36 tries again at the next call
        require_model_directory("me/it")
    assert require_model_directory("me/it").is_dir()
    logged = "".join(caplog.messages) + capsys.readouterr().err
    assert "Trying to resume download" in logged or "interrupted" in logged
    assert "127.0.0.1" in logged
    assert "s3cr" not in logged
    assert not [path for path in (tmp_path / "cache").rglob("*") if "et@" in str(path)]
    hub.is_down = True
    for name in ("me/it@other", "released:base-v2"):
        said = told(name, capsys)
        assert "cr" not in said
        assert "127.0.0.1" in said


def test_a_branch_with_a_long_name_is_kept(hub: FakeHub, files: dict[str, bytes]) -> None:
    branch = "f/" * 30 + "x" * 138
    commit = hub.add("me/it", files, ref=branch)
    assert require_model_directory(f"me/it@{branch}").name == commit
    hub.is_down = True
    assert require_model_directory(f"me/it@{branch}").name == commit


def test_names_that_lead_outside_are_never_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    evil = {
        "../evil.model": b"",
        "a/evil.model": b"",
        "/evil.model": b"",
        "model-x.safetensors": b"",
    }
    hub.add("me/it", {k: v for k, v in files.items() if k != "spiece.model"} | evil)
    chosen = client.chosen_files([*files, *evil], "me/it")
    assert not [name for name in chosen if "evil" in name or name == "model-x.safetensors"]


# ---------------------------------------------------------------------------------------- pushing


@pytest.fixture
def may_write(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # What a commit's address begins with: huggingface_hub reads HF_ENDPOINT when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    hub.may_write = "hf_secret"
    return hub


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_model_directory_is_pushed_with_its_card_and_comes_back_the_same(
    may_write: FakeHub,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ["push", str(model), "hub:me/new", "--private", "--license", "mit"]
    assert cli.main(line) == 0
    printed = capsys.readouterr()
    repository = may_write.repositories["me/new"]
    commit = repository.refs["main"]
    assert printed.out == f"{may_write.endpoint}/me/new/commit/{commit}\n"
    assert repository.private
    assert repository.messages == ["Upload an ALBERT with albert_jax"]
    assert repository.commits[commit].keys() >= {"README.md", "model.safetensors", "spiece.model"}
    card = repository.commits[commit]["README.md"].decode()
    assert 'license: "mit"\n' in card
    assert 'albert_jax.load("me/new")' in card
    assert str(model) not in card
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # as the addresses of files
    np.testing.assert_array_equal(
        albert_jax.load("me/new").forward([[2, 10, 3]]).masked_lm_logits,
        albert_jax.load(model).forward([[2, 10, 3]]).masked_lm_logits,
    )
    assert "hf_secret" not in printed.out + printed.err
    assert b"hf_secret" not in everything_below(tmp_path)


def test_a_transformers_folder_is_pushed_as_it_is_to_a_branch(
    may_write: FakeHub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "spiece.model", "tf_model.h5"):
        (folder / name).write_bytes(files[name])
    pushed = albert_jax.push(folder, "me/it", revision="v1")
    assert "left out, as no model needs it: tf_model.h5" in capsys.readouterr().err
    assert pushed.files == ["README.md", "config.json", "model.safetensors", "spiece.model"]
    assert pushed.revision == "v1"
    repository = may_write.repositories["me/it"]
    assert repository.commits[repository.refs["main"]] == {}
    there = repository.commits[repository.refs["v1"]]
    assert there["model.safetensors"] == files["model.safetensors"]
    assert not (folder / "README.md").exists()
    (folder / "README.md").write_bytes(b"# Mine")
    albert_jax.push(folder, "hub:me/it@v1")
    assert repository.commits[repository.refs["v1"]]["README.md"] == b"# Mine"
    # What another model left would be read with this one's weights.
    others = {"tokenizer.json": b"{}", "notes.txt": b"mine"}
    others |= {"modules.json": b"[]", "1_Pooling/config.json": b"{}"}  # sentence-transformers'
    may_write.add("me/it", repository.commits[repository.refs["v1"]] | others, "v1")
    albert_jax.push(folder, "hub:me/it@v1")
    there = repository.commits[repository.refs["v1"]]
    assert there.keys() == {*pushed.files, "notes.txt"}
    with pytest.raises(UserError, match="me/it exists and is public, so private=True cannot hold"):
        albert_jax.push(folder, "hub:me/it@v1", private=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hub:it"], "hub:it has no owner; give hub:OWNER/NAME"),
        (["hub:a/b/c"], "hub:a/b/c names no repository of the hub"),
        (
            ["hub:me/it@v1", "--revision", "v2"],
            "@v1 and --revision v2 name two revisions; give one",
        ),
        (
            ["hub:me/it@main", "--revision", "dev"],
            "@main and --revision dev name two revisions; give one",
        ),
        (["hub:me/it", "--license", "My own"], "license 'My own' is no identifier of the hub's"),
    ],
)
def test_a_push_that_says_two_things_or_none_is_told(
    may_write: FakeHub, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", "mini", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert may_write.requests == []


def test_a_push_that_is_refused_is_one_line_and_tells_no_token(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    assert cli.main(["push", "mini", "hub:me/it"]) == 2
    assert "a token with write access, and there is none; log in with" in capsys.readouterr().err
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.may_write = "hf_secret"
    assert cli.main(["push", "mini", "hub:me/it"]) == 2
    said = capsys.readouterr().err
    assert "log in with hf auth login, or set HF_TOKEN" in said.splitlines()[-1]
    assert "hf_other" not in said
    assert "me/it" not in hub.repositories
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"no weights")
    assert cli.main(["push", str(tmp_path / "folder"), "hub:me/it"]) == 2
    assert "cannot be uploaded as it is: " in capsys.readouterr().err
    assert not hub.asked("POST", "/preupload/main")
