"""Secrets stay secret, overrides cannot have Hydra run things, and nothing dangerous is called."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.telemetry.client import get_telemetry_client
from rich.console import Console

from search.cli import command as cli
from search.cli.progress import configure_logging
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.errors import ConfigError, hide_passwords, one_line, printable
from search.tracking.registry import FACTS, _registered

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-topsecret"


# ---- secrets


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{SECRET}@host:5000/x",
        f"http://me:{SECRET}@@host",
        f"postgresql+psycopg2://u:{SECRET}@h/db?sslmode=require",
        f"postgresql://h/db?user=u&password={SECRET}&x=1",
        f"PGPASSWORD={SECRET} psql",
        f"MLFLOW_TRACKING_TOKEN={SECRET}",
        f"host=h user=u password='{SECRET}'",
        f"api_key: {SECRET}",
        f"  my_secret: '{SECRET}'",
        f"{{'token': '{SECRET}', 'x': 1}}",
        f'{{"access_key": "{SECRET}"}}',
        f"connect(token={SECRET})",
        f"API_KEY = {SECRET}; retry",
        f"password: two words {SECRET}",
        f"  database.password: {SECRET} two words",
        f"https://{SECRET}@host/x",
        f"Authorization: Bearer {SECRET}",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    shown = hide_passwords(text)
    assert SECRET not in shown
    assert "***" in shown
    assert SECRET not in one_line(ValueError(text))
    assert hide_passwords(shown).count("***") == shown.count("***")


@pytest.mark.parametrize(
    "text",
    [
        "model: cnn\nwidth: 32\ntokens: 5\ntokenizer: words\n",
        "token: null\npassword: None\n",
        "credentials:\n  user: me\n",
        "http://host:5000/#/experiments/1",
        "see data.mean: 0.5",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert hide_passwords(text) == text


def test_a_configuration_without_secrets_is_yaml_still() -> None:
    told = {"uri": f"http://me:{SECRET}@h", "api_key": SECRET, "a": {"token": SECRET, "b": [1]}}
    shown = hide_passwords(yaml.safe_dump(told))
    assert SECRET not in shown
    assert yaml.safe_load(shown) == {
        "uri": "http://me:***@h",
        "api_key": "***",
        "a": {"token": "***", "b": [1]},
    }


@pytest.fixture
def restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_logs_hide_secrets(restored_logging: None, is_terminal: bool) -> None:
    stream = io.StringIO()
    configure_logging(Console(file=stream, force_terminal=is_terminal, width=200))
    logging.getLogger("search.x").warning("cannot reach http://me:%s@host", SECRET)
    try:
        raise ValueError(f"password={SECRET}")
    except ValueError:
        logging.getLogger("mlflow").warning("retrying", exc_info=True)
    said = stream.getvalue()
    assert "cannot reach" in said
    assert "retrying" in said
    assert SECRET not in said


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        (f"token={SECRET}", "token looks like a secret"),
        (f"api_key={SECRET}", "api_key looks like a secret"),
        (f"db_password={SECRET}", "db_password looks like a secret"),
        (f"login.secret={SECRET}", "secret looks like a secret"),
        ("password=4711", "password looks like a secret"),
        (f"token=[{SECRET}]", "token looks like a secret"),
        (f"logins=[{{password: {SECRET}}}]", "password looks like a secret"),
        (f"url=postgresql://me:{SECRET}@db/x", "url seems to hold a secret"),
        (f"urls=[http://me:{SECRET}@db]", "urls seems to hold a secret"),
    ],
)
def test_arguments_that_look_like_secrets_are_refused(
    group: str,
    argument: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arguments are in the journal, the store, MLflow and a bundle's model card, in clear."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    arguments = [f"{group}=custom", f"{group}.factory=a:b", f"{group}.arguments.{argument}"]
    job = cli.main(lambda raw, _: bool(parse(raw, SearchConfig)), arguments)
    said = capsys.readouterr().err
    assert job == 2
    assert f"{group}.arguments: {complaint}" in said
    assert "from the environment" in said
    assert SECRET not in said


def test_arguments_that_only_sound_like_secrets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    arguments = ["tokens=5", "token=true", "tokenizer=words", "key=3"]
    seen: list[Any] = []

    def job(raw: Any, _: str) -> int:
        seen.append(parse(raw, SearchConfig).model)
        return 0

    given = [f"model.arguments.{argument}" for argument in arguments]
    assert cli.main(job, ["model=custom", "model.factory=a:b", *given]) == 0
    assert len(seen) == 1


def test_a_shown_configuration_hides_passwords(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    arguments = ["--cfg", "job", f"tracking.uri=http://me:{SECRET}@host"]
    assert cli.main(lambda raw, _: 0, arguments) == 0
    said = capsys.readouterr().out
    assert "http://me:***@host" in said
    assert SECRET not in said


def test_errors_do_nothing_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])

    def job(raw: Any, _: str) -> int:
        raise ConfigError("cannot read '\x1b]0;owned\x07.png'")

    assert cli.main(job, []) == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()
    assert len(printable("x" * 10_000)) < 1100


# ---- overrides


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.callbacks.x={_target_: pathlib.Path.touch, self: owned}",
        "++hydra.callbacks.x._target_=builtins.exec",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra.launcher._target_=os.system",
        "hydra/launcher=joblib",
        "+hydra/sweeper=x",
        "~hydra.job",
        "hydra.searchpath=[/tmp]",
        "--experimental-rerun=config.pickle",
        "--experimental-rerun",
        "--exp",
    ],
)
def test_hydra_itself_takes_no_orders(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert cli.main(lambda raw, _: 0, [argument]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {argument}: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        "model._target_=os.system",
        "study._target_=os.system",
        "device.host=${oc.env:HOME}",  # only ssh has one
        "study.name=${oc.env:SURELY_NOT_SET}",
        "study.seed=${study.seed}",
        "study.name=${eval:1}",
        "study.name=../../x",
        "tracking.uri=file:///etc/passwd",
    ],
)
def test_a_hostile_value_is_refused_in_one_line(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert cli.main(lambda raw, _: bool(parse(raw, SearchConfig)), [argument]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said


# ---- what somebody else registered


SOUND: dict[str, Any] = {
    "data": "d",
    "bits": 8,
    "latency_ms": 1.0,
    "latency_high": 1.1,
    "session_entries": [["session.disable_quant_qdq", "1"]],
    "device": "local",
}


@pytest.mark.parametrize(
    "facts",
    [
        "no json",
        "[1]",
        "[" * 100_000,
        json.dumps({**SOUND, "bits": "many"}),
        json.dumps({**SOUND, "session_entries": 5}),
        json.dumps({**SOUND, "session_entries": [["ep.context_file_path", "/etc/x"]]}),
        json.dumps({**SOUND, "latency_high": None}),
        json.dumps({"data": "d"}),
    ],
)
def test_facts_of_a_strange_champion_count_for_nothing(facts: str) -> None:
    def version(text: str) -> ModelVersion:
        tag = ModelVersionTag(FACTS, text)  # type: ignore[no-untyped-call]
        return ModelVersion("m", "3", 0, tags=[tag])

    assert _registered(version(facts), is_new=False).facts == {}
    assert _registered(version(json.dumps(SOUND)), is_new=False).facts == SOUND


# ---- what is called


def sources() -> list[Path]:
    return sorted([*(ROOT / "search").rglob("*.py"), *(ROOT / "models").rglob("*.py")])


# What runs code from, or writes where it is told by, the file that it reads.
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "shutil.unpack_archive", "onnx.load_model",
}  # fmt: skip
DEMANDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "self._numpy.load": ("allow_pickle", False),
}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in FORBIDDEN_CALLS, (name, node.lineno)
            assert not name.endswith((".extractall", ".extract")), node.lineno
            assert given.get("shell", "False") == "False", node.lineno
            if name in DEMANDED:
                word, value = DEMANDED[name]
                assert given.get(word) == str(value), (name, node.lineno)


def test_nothing_listens_beyond_this_machine() -> None:
    for path in [*sources(), ROOT / "Makefile", *(ROOT / "conf").rglob("*.yaml")]:
        assert not re.search(r"0\.0\.0\.0|host=\"\"|INADDR_ANY", path.read_text()), path


# ---- what docs/security.md promises


def test_every_named_test_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text() or not test, (path, test)


def test_nothing_is_reported_from_tests_either() -> None:
    assert get_telemetry_client() is None
