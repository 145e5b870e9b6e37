"""Lets Optuna's storage survive a broken connection."""

from __future__ import annotations

import copy
import logging
import time
import uuid
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from search.errors import StorageLost
from search.storage.database import pauses, reason_of

T = TypeVar("T")
log = logging.getLogger(__name__)
# Tells a trial that was created before the connection broke from one that was not.
CREATION = "creation"


class ConnectionBroke(Exception):  # noqa: N818 - named by what happened
    """Whether the call took effect is unknown."""


class PatientStorage(BaseStorage):
    """Calls another storage again when its connection breaks, until a time is over.

    A call whose connection breaks may have taken effect or not. Attributes and parameters are
    written again: the second time changes nothing. For trials that are created or change their
    state, what there is is looked at first. That is enough because the study is held: nobody else
    wrote, or it could not be held again, and what this process wrote before is settled then.

    Args:
        inner: Raises ``ConnectionBroke``.
        retry_s: Seconds after which a connection is lost for good.
        where: Names the storage in messages.
    """

    def __init__(self, inner: BaseStorage, retry_s: float, where: str) -> None:
        self._inner = inner
        self._retry_s = retry_s
        self._where = where

    def _patiently(self, call: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Returns what ``call`` does; after a broken connection what ``again`` does, if given.

        Raises:
            StorageLost: When the connection does not come back in time, or the storage refuses.
        """
        try:
            return self._explained(call)
        except ConnectionBroke as error:
            deadline = time.monotonic() + self._retry_s
            log.warning(
                "%s: the connection broke (%s); trying again for up to %g s",
                self._where,
                error,
                self._retry_s,
            )
        for pause_s in pauses():
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            try:
                answer = self._explained(again or call)
            except ConnectionBroke as error:
                if time.monotonic() >= deadline:
                    raise StorageLost(
                        f"{self._where}: the connection broke and did not come back within "
                        f"{self._retry_s:g} s ({error}); finished trials are kept"
                    ) from error
            else:
                log.info("%s: the connection is back", self._where)
                return answer
        raise AssertionError("pauses never end")

    def _explained(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            raise StorageLost(
                f"{self._where}: refuses what the search asks ({reason_of(cause or error)}); "
                "finished trials are kept"
            ) from error

    # ---- calls that must not be done twice

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Creates a trial once."""
        token = uuid.uuid4().hex
        template = copy.deepcopy(template_trial) or create_trial(state=TrialState.RUNNING)
        template.system_attrs = {**template.system_attrs, CREATION: token}

        def create() -> int:
            return self._inner.create_new_trial(study_id, template)

        def find_or_create() -> int:
            trials = self._inner.get_all_trials(study_id, deepcopy=False)
            mine = (t._trial_id for t in trials if t.system_attrs.get(CREATION) == token)
            found = next(mine, None)
            return create() if found is None else found

        return self._patiently(create, find_or_create)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Tells a trial's state once; that it has it already counts as told."""

        def tell() -> bool:
            return self._inner.set_trial_state_values(trial_id, state, values)

        def look_or_tell() -> bool:
            trial = self._inner.get_trial(trial_id)
            is_told = trial.state == state and (values is None or trial.values == list(values))
            return is_told or tell()

        return self._patiently(tell, look_or_tell)

    # ---- calls that may be done twice

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Creates a study; the second time Optuna itself finds it there."""
        return self._patiently(lambda: self._inner.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """Deletes a study."""
        self._patiently(lambda: self._inner.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Writes an attribute."""
        self._patiently(lambda: self._inner.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Writes an attribute."""
        self._patiently(lambda: self._inner.set_study_system_attr(study_id, key, value))

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Writes a parameter."""
        self._patiently(
            lambda: self._inner.set_trial_param(
                trial_id, param_name, param_value_internal, distribution
            )
        )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Writes a value."""
        self._patiently(
            lambda: self._inner.set_trial_intermediate_value(trial_id, step, intermediate_value)
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Writes an attribute."""
        self._patiently(lambda: self._inner.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Writes an attribute."""
        self._patiently(lambda: self._inner.set_trial_system_attr(trial_id, key, value))

    # ---- reading

    def get_study_id_from_name(self, study_name: str) -> int:
        """Reads a study's number."""
        return self._patiently(lambda: self._inner.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Reads a study's name."""
        return self._patiently(lambda: self._inner.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Reads a study's directions."""
        return self._patiently(lambda: self._inner.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Reads a study's attributes."""
        return self._patiently(lambda: self._inner.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Reads a study's attributes."""
        return self._patiently(lambda: self._inner.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """Reads all studies."""
        return self._patiently(self._inner.get_all_studies)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Reads a trial's number among all."""
        return self._patiently(
            lambda: self._inner.get_trial_id_from_study_id_trial_number(study_id, trial_number)
        )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Reads a trial."""
        return self._patiently(lambda: self._inner.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Reads all trials."""
        return self._patiently(lambda: self._inner.get_all_trials(study_id, deepcopy, states))
