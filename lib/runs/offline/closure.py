"""Whether pip's choice is complete on another machine than the one it ran on."""

from collections.abc import Iterable
from typing import Any

from packaging.requirements import Requirement

from lib.runs.offline.folder import normalise


def find_left_out(report: Iterable[dict[str, Any]], environment: dict[str, str]) -> list[str]:
    """Return the requirements of chosen packages that hold in an environment and were not chosen.

    `report` is the list `install` of pip's report. pip judges "only under Python below 3.12" or
    "only on x86_64" by the machine that it runs on.
    """
    items = list(report)
    needs = {
        normalise(item["metadata"]["name"]): item["metadata"].get("requires_dist", [])
        for item in items
    }
    waiting = [
        (normalise(item["metadata"]["name"]), frozenset(item.get("requested_extras", [])))
        for item in items
        if item["requested"]
    ]
    seen = set()
    left_out = {}
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        for text in needs[package]:
            requirement = Requirement(text)
            if not _holds(requirement, environment, extras):
                continue
            name = normalise(requirement.name)
            if name in needs:
                waiting.append((name, frozenset(requirement.extras)))
            else:
                left_out[name] = f"{requirement.name}{requirement.specifier}"
    return sorted(left_out.values())


def _holds(requirement: Requirement, environment: dict[str, str], extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(
        requirement.marker.evaluate({**environment, "extra": extra}) for extra in {"", *extras}
    )
