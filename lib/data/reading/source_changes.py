"""Tell whether the sources of a run are still those that its rows were prepared from."""

import hashlib

from lib.common import files
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.medical import safety
from lib.params import Params
from lib.record.run_record import Run
from lib.record.schema import RunRecord


def hash_parts(job: Params) -> dict[str, str]:
    """Return a sha256 of the data, and of the exam and safety set that they are compared with."""
    rows = job.model_copy(update={"decontaminate": 0})  # its hash is then over the data alone
    parts = {"data": sources.hash_sources(rows)}
    if job.decontaminate:
        exams = sources.identify_exams(job.exam)
        parts["exam"] = hashlib.sha256(exams.encode()).hexdigest()
        parts["safety set"] = files.sha256(safety.ROWS_FILE)
    return parts


def describe_changes(record: RunRecord, job: Params) -> str:
    """Say which sources differ from those that were prepared; "" if none does.

    A later stage reads the prepared rows, so to it this is news, and not an error.
    """
    recorded = record["fingerprints"].get("dataset")
    if not recorded or record["stages"]["prepare"]["status"] != "finished":
        return ""
    try:
        if sources.hash_sources(job) == recorded:
            return ""
        present = hash_parts(job)
    except UserError as error:
        return f"a source cannot be read any more: {str(error).splitlines()[0]}"
    names = {
        "data": f"the data ({sources.describe(job.dataset)})",
        "exam": f"the exam ({', '.join(map(sources.name_exam, job.exam))})",
        "safety set": f"the safety set ({safety.NAME})",
    }
    parts = record.get("sources", {})
    changed = [names[part] for part in present if present[part] != parts.get(part)]
    joined = " or ".join(changed) if not parts else " and ".join(changed)
    return f"{joined} changed"


def note_changes(run: Run, job: Params) -> str:
    """Record and return `describe_changes`."""
    changed = describe_changes(run.data, job)
    if changed != run.data.get("sources_changed", ""):
        run.data["sources_changed"] = changed
        run.save()
    return changed


def name_consequence(changes: str, name: str) -> str:
    """Return what changed sources mean for a run, and what to do to use the present ones."""
    return (
        f"since run `{name}` was prepared, {changes}. It goes on with the rows that it prepared, "
        f"which were not compared with anything newer. `make prepare FORCE=1 RUN={name}` prepares "
        f"the sources of today; training then starts over."
    )
