"""Puts picked models into MLflow's registry."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from search.bundle.predict import SUMS
from search.config.places import TrackingConfig
from search.errors import ConfigError, hide_passwords
from search.process import home
from search.tracking.runs import IDENTITY, PARENT
from search.tracking.server import address, connect, database_file, explained

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version: its bundle's digest, and what it is compared by.
BUNDLE, FACTS = "bundle.sha256", "comparison"
# 99 stands for all of onnxruntime's graph optimisations in MLflow's settings.
OPTIMISATION_LEVELS = {"all": 99}


class _Comparable(TypedDict):
    """What of a version's facts is made use of; whoever may write to the registry wrote them."""

    data: str
    bits: int
    latency_ms: float
    latency_high: float
    # Others could name files for the runtime to read and write.
    session_entries: list[tuple[Literal["session.disable_quant_qdq"], Literal["1"]]]


COMPARABLE = TypeAdapter(_Comparable)


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        version: Its number.
        facts: What a later model is compared by.
        is_new: Whether it was registered just now.
    """

    version: str
    facts: Mapping[str, Any]
    is_new: bool


class Registry:
    """The versions of one study's model.

    Args:
        config: Where the tracking server or database is.
        state: Folder of the working directory's state.
        study: Name of the study and of the model.

    Raises:
        ConfigError: When the server does not answer or the database cannot be opened.
    """

    def __init__(self, config: TrackingConfig, state: Path, study: str) -> None:
        self._config, self._state, self._study = config, state, study
        file = database_file(config, state)
        if file is not None and not file.exists():  # or an empty one would be made
            raise ConfigError(
                f"tracking.uri={self.server!r}: there is no such database; give the one that the "
                f"study was tracked in, or log it anew: {home.command('sync')} study={study} "
                "with that tracking.uri"
            )
        with explained(config, state):
            self._client: MlflowClient = connect(config, state)
            mlflow.set_tracking_uri(address(config, state))

    @property
    def server(self) -> str:
        """Address of the server or database, without its password."""
        return hide_passwords(address(self._config, self._state))

    def register(
        self, bundle: Path, identity: str, trial: int, description: str, facts: Mapping[str, Any]
    ) -> Registered:
        """Registers a bundle's model, unless this very bundle is registered; marks it candidate.

        Args:
            bundle: Folder of a verified bundle; its files are kept beside the trial too.
            identity: Of the study.
            trial: Number of its trial.
            description: One line about the model.
            facts: What a later model is compared by.
        """
        # What it lists tells bundles apart.
        sums_sha256 = hashlib.sha256((bundle / SUMS).read_bytes()).hexdigest()
        run_id = self.run_of(identity, trial)
        with explained(self._config, self._state, "mend that and pick again: the bundle stands"):
            known = self._find(sums_sha256)
            is_new = known is None
            if known is None:
                self._client.log_artifacts(run_id, str(bundle), "bundle")
                version = self._log_model(bundle, run_id)
                # Last comes the digest: a version without it was cut off, and is not found again.
                tags = {"trial": trial, FACTS: json.dumps(facts), BUNDLE: sums_sha256}
                for key, value in tags.items():
                    self._client.set_model_version_tag(self._study, version, key, str(value))
                self._client.update_model_version(self._study, version, description)
                known = self._client.get_model_version(self._study, version)
            self._client.set_registered_model_alias(self._study, CANDIDATE, known.version)
            return _registered(known, is_new)

    def champion(self) -> Registered | None:
        """Returns the present champion, if there is one."""
        with explained(self._config, self._state):
            try:
                found = self._client.get_model_version_by_alias(self._study, CHAMPION)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                return None
            return _registered(found, is_new=False)

    def model_of(self, version: str) -> bytes:
        """Returns the ONNX file of a version.

        Raises:
            ConfigError: When it was removed.
        """
        with explained(self._config, self._state), tempfile.TemporaryDirectory() as folder:
            uri = f"models:/{self._study}/{version}"
            path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)) / "model.onnx"
            if not path.is_file():
                raise ConfigError(
                    f"{uri}: MLflow has its files no more, so nothing can be compared with it; "
                    "take its alias away, and pick again"
                )
            return path.read_bytes()

    def promote(self, version: str, remark: str) -> None:
        """Makes a version the champion.

        Args:
            version: Its number.
            remark: Why, kept with it.
        """
        with explained(self._config, self._state):
            self._client.set_model_version_tag(self._study, version, "promotion", remark)
            self._client.set_registered_model_alias(self._study, CHAMPION, version)

    def _find(self, sums_sha256: str) -> ModelVersion | None:
        found = self._client.search_model_versions(f"name = '{self._study}'")
        same = (v for v in found if v.tags.get(BUNDLE) == sums_sha256)
        return next(same, None)

    def run_of(self, identity: str, trial: int) -> str:
        """Returns the run of a trial.

        Raises:
            ConfigError: When the study is not tracked there.
        """
        with explained(self._config, self._state):
            experiment = self._client.get_experiment_by_name(self._study)
            places = [] if experiment is None else [experiment.experiment_id]
            for parent in self._client.search_runs(places, f"tags.`{IDENTITY}` = '{identity}'"):
                mine = f"tags.`{PARENT}` = '{parent.info.run_id}'"
                for run in self._client.search_runs(places, f"{mine} and tags.trial = '{trial}'"):
                    run_id: str = run.info.run_id
                    return run_id
        raise ConfigError(
            f"tracking.uri={self.server!r}: holds no trial {trial} of this study; give the "
            "tracking.uri that it was searched with, or log it there: "
            f"{home.command('sync')} study={self._study} with that tracking.uri"
        )

    def _log_model(self, bundle: Path, run_id: str) -> str:
        import onnx

        # Or the model is kept with the experiment "Default", wherever the first of all commands
        # that wrote this database worked.
        mlflow.set_experiment(experiment_id=self._client.get_run(run_id).info.experiment_id)
        runtime: dict[str, Any] = json.loads((bundle / "runtime.json").read_text("utf-8"))
        with np.load(bundle / "samples.npz", allow_pickle=False) as samples:
            images, logits = samples["images"], samples["logits"]
        with redirect_stderr(io.StringIO()):  # it tells there what is told in better order here
            logged = Model.log(
                artifact_path=None,
                name="candidate",
                flavor=mlflow.onnx,
                run_id=run_id,
                registered_model_name=self._study,
                onnx_model=onnx.load(bundle / "model.onnx"),
                signature=infer_signature({"images": images}, {"logits": logits}),
                input_example={"images": images[:1]},
                save_as_external_data=False,
                onnx_execution_providers=runtime["providers"],
                onnx_session_options=_session_options(runtime),
                pip_requirements=_requirements(bundle),
            )
        return str(logged.registered_model_version)


def _registered(version: ModelVersion, is_new: bool) -> Registered:
    # A version that somebody else registered has no such facts, or others.
    try:
        facts: dict[str, Any] = json.loads(version.tags.get(FACTS, "{}"))
        COMPARABLE.validate_python(facts)
    except (ValueError, RecursionError):
        facts = {}
    return Registered(str(version.version), facts, is_new)


def _session_options(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the options of ``runtime.json`` as MLflow's loader takes them."""
    return {
        "intra_op_num_threads": runtime["intra_op_num_threads"],
        "inter_op_num_threads": runtime["inter_op_num_threads"],
        "execution_mode": runtime["execution_mode"],
        "graph_optimization_level": OPTIMISATION_LEVELS[runtime["graph_optimization_level"]],
        "extra_session_config": runtime["session_entries"],
    }


def _requirements(bundle: Path) -> list[str]:
    from importlib.metadata import version

    pinned = (bundle / "requirements.txt").read_text("utf-8").split()
    return [f"mlflow=={version('mlflow')}", f"onnx=={version('onnx')}", *pinned]
