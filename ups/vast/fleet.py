"""Several machines at once: all are rented or none, and all are given back by one name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ups.errors import VastError
from ups.vast import offers, tool
from ups.vast.launch import create, known_instances
from ups.vast.offers import Offer, Wishes


def labels(label: str, count: int) -> list[str]:
    """A label for each machine: the label itself, or `label-1` to `label-N`."""
    return [label] if count == 1 else [f"{label}-{number}" for number in range(1, count + 1)]


def choose(wishes: Wishes, count: int, max_total: float | None) -> list[Offer]:
    """The cheapest offers that fit, one for each machine.

    Args:
        max_total: dollars per hour of all of them; None: any.
    Raises:
        VastError: there are fewer, together they cost more, or more than an hour's credit.
    """
    found = offers.search(wishes, count)
    if not found:
        raise VastError(f"no offer fits: {wishes.query()}")
    if len(found) < count:
        raise VastError(
            f"{len(found)} of {count} offers fit, so nothing was rented: ask for fewer with "
            f"--count, or for less: {wishes.query()}"
        )
    total = sum(offer.dph_total for offer in found)
    if max_total is not None and total > max_total:
        raise VastError(
            f"{count} machines cost ${total:.3f} per hour, more than --max-total {max_total:g}, so "
            "nothing was rented: ask for fewer with --count, or allow more"
        )
    if count > 1 and (credit := _credit()) is not None and credit < total:
        raise VastError(
            f"{count} machines cost ${total:.3f} per hour, and the account has ${credit:.2f}, so "
            "nothing was rented: add credit, or ask for fewer with --count"
        )
    return found


def _credit() -> float | None:
    """Dollars of the account; None where Vast does not say."""
    user = tool.ask("show", "user")
    credit = user.get("credit") if isinstance(user, dict) else None
    return float(credit) if isinstance(credit, int | float) else None


def rent(commands: Sequence[Sequence[str]]) -> list[int]:
    """Rent them one after the other; returns the instances' ids.

    Raises:
        VastError: Vast refuses one. Those that were rented before it are destroyed again.
    """
    rented: list[int] = []
    try:
        for command in commands:
            rented.append(create(command))
    except BaseException as error:  # Ctrl-C, too, leaves nothing that is paid for
        if not rented:
            raise
        left = [number for number in rented if not _is_destroyed(number)]
        shown = " ".join(map(str, left))
        outcome = (
            f"still paid for: destroy them with `vastai destroy instances {shown}`"
            if left
            else f"the {len(rented)} rented before were destroyed again"
        )
        raise VastError(f"{error or type(error).__name__}; {outcome}") from None
    return rented


def _is_destroyed(number: int) -> bool:
    try:
        destroy(number)
    except VastError:  # its id is in the message that follows
        return False
    return True


def destroy(number: int) -> None:
    """Give an instance back, with all that is on its disk.

    Raises:
        VastError: Vast refuses.
    """
    tool.run("destroy", "instance", str(number), "--yes", accepted="destroying instance")


def find_all(wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The account's instances with these ids or labels, or with `-1`, `-2`, … after a label.

    Raises:
        VastError: there is none for one of them.
    """
    known = known_instances()
    found: dict[int, dict[str, Any]] = {}
    for name in wanted:
        fits = re.compile(rf"{re.escape(name)}(-\d+)?")
        several = [i for i in known if fits.fullmatch(str(i.get("label")))]
        of_name = [i for i in known if str(i.get("id")) == name] or several
        if not of_name:
            shown = ", ".join(f"{i.get('id')} ({i.get('label')})" for i in known) or "none"
            raise VastError(f"no instance has the id or label {name!r}; there: {shown}")
        found |= {int(instance["id"]): instance for instance in of_name}
    return list(found.values())
