"""A failed run says why before all else: in its state, in its log, on a page of its own."""

from __future__ import annotations

import logging
from typing import Any

from prefect.states import Failed, State

from ups.errors import UpsError
from ups.runs.record import describe_error, how_it_ended

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")  # where Prefect logs what was raised
# How it logs a state that a task returned: with all of it, after the task has logged the reason.
RETURNED = "Task run failed with state: "


class ReasonFirst(logging.Filter):
    """One line with the reason, in place of a traceback or before it.

    An `UpsError` says what is to be done: its traceback is in `run.log` alone, and the flow and the
    engine, which raise it again, say nothing more. Of anything else the traceback follows.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(RETURNED):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Exception) or record.levelno < logging.ERROR:
            return True
        is_told, self._told = error is self._told, error
        if isinstance(error, UpsError):
            record.msg, record.args, record.exc_info = describe_error(error), (), None
            return not is_told
        if not is_told:
            line = logging.makeLogRecord({**vars(record), "msg": describe_error(error)})
            line.args, line.exc_info, line.exc_text = (), None, None
            logging.getLogger(record.name).handle(line)
        return True


def say_reasons_first() -> None:
    """Have Prefect's loggers of runs begin with the reason, in this process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(found, ReasonFirst) for found in logger.filters):
            logger.addFilter(_REASON_FIRST)


_REASON_FIRST = ReasonFirst()  # one: a task and its flow log the same error


def failed_with(error: UpsError) -> State[Any]:
    """The state of a run that fails with this: the reason alone, and not Prefect's words before it.

    Raises:
        UpsError: it is somebody's wish to stop, which is no failure.
    """
    if how_it_ended(error) != "failed":
        raise error
    return Failed(message=describe_error(error), data=error)
