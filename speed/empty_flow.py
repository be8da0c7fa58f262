"""A flow of one task that does nothing: what is left of a boot when there is nothing to do."""

from prefect import flow, task


@task
def nothing() -> None:
    """Its start is what is timed."""


@flow(name="empty")
def empty() -> None:
    """Run the task."""
    nothing()
