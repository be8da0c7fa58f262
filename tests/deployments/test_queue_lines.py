import logging

from deployments.worker import QueueIsQuiet


def test_a_run_that_waits_in_the_queue_says_so_ever_more_rarely():
    quiet, shown = QueueIsQuiet(), []

    def log(message, run_id):
        record = logging.makeLogRecord({"msg": message, "args": (), "flow_run_id": run_id})
        if quiet.filter(record):
            shown.append((run_id, record.getMessage()))

    for _ in range(100):
        log("Worker 'w' submitting flow run 'a'", "a")
        log(
            "Aborted submission of flow run 'a': Server returned a non-pending state 'SCHEDULED'",
            "a",
        )
    log("Worker 'w' submitting flow run 'b'", "b")
    log("Aborted submission of flow run 'b'. Server sent an abort signal: gone", "b")
    log("Flow run 'spry-anteater' submitted to infrastructure", "a")
    waits = [message for run_id, message in shown if "waiting" in message]
    assert waits == 7 * ["waiting for another run, which goes first"]  # 1, 2, 4 to 64
    assert shown[0] == ("a", "Worker 'w' submitting flow run 'a'")
    assert shown[-3][0] == "b"
    assert shown[-2][1].endswith("abort signal: gone")
    assert shown[-1][1].endswith("submitted to infrastructure")
    assert len(shown) == 11
