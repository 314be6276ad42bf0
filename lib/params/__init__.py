"""The parameters of a job: schema, strict reading, and the hash in a run folder's name.

python -m lib.params            # the table of parameters in params/README.md
"""

from lib.params.conflicts import list_conflicts, require_consistent
from lib.params.keeping import find_changed, fingerprint, load_recorded, to_yaml
from lib.params.kinds import RULES, Source, Text
from lib.params.reading import check_values, load_job, parse_overrides, read_values, suggest_name
from lib.params.schema import FIELDS, Params, is_free, stage_of
from lib.params.wording import describe_type, markdown_table

__all__ = [
    "FIELDS",
    "RULES",
    "Params",
    "Source",
    "Text",
    "check_values",
    "describe_type",
    "find_changed",
    "fingerprint",
    "is_free",
    "list_conflicts",
    "load_job",
    "load_recorded",
    "markdown_table",
    "parse_overrides",
    "read_values",
    "require_consistent",
    "stage_of",
    "suggest_name",
    "to_yaml",
]
