import logging

import pytest

from tasks.failures import ReasonFirst, failed_with
from ups.errors import DataError, Interrupted


@pytest.fixture
def logger():
    """Like Prefect's of tasks, with lines that are kept."""
    logger, lines = logging.getLogger("of-reasons"), []
    handler = logging.Handler()
    handler.emit = lines.append
    logger.filters[:], logger.handlers[:] = [ReasonFirst()], [handler]
    logger.propagate = False
    return logger, lines


def log_raised(logger, error, times=2):
    try:
        raise error
    except type(error) as raised:
        for _ in range(times):
            logger.error("Task run failed with exception: %r", raised, exc_info=True)


def test_a_users_error_is_one_line_without_a_traceback(logger):
    log_raised(logger[0], DataError("x.h5: 3 % of it is missing"))
    (line,) = logger[1]
    assert line.getMessage() == "DataError: x.h5: 3 % of it is missing"
    assert line.levelno == logging.ERROR
    assert line.exc_info is None


def test_the_reason_of_any_other_error_comes_before_its_traceback(logger):
    log_raised(logger[0], ZeroDivisionError("by 100 %"))
    first, *others = logger[1]
    assert (first.getMessage(), first.exc_info) == ("ZeroDivisionError: by 100 %", None)
    assert [record.exc_info[0] for record in others] == 2 * [ZeroDivisionError]


def test_the_state_is_the_reason_and_who_asked_to_stop_has_not_failed():
    state = failed_with(DataError("x.h5: no tensor"))
    assert (state.name, state.message) == ("Failed", "DataError: x.h5: no tensor")
    with pytest.raises(Interrupted, match="by a signal"):
        failed_with(Interrupted("by a signal"))
