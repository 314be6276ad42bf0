"""The pages people open: one template for all, text escaped, nothing fetched, and a policy in the page that forbids the browser to."""

import json
import pathlib
from typing import Any

import jinja2

from lib.common import files, text
from lib.medical.disclaimer import DISCLAIMER

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write(path: pathlib.Path, template: str, **values: Any) -> pathlib.Path:
    """Render templates/<template> into `path`; returns it."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(form=text.format_value, size=text.format_size, brief=brief)
    environment.tests["measure"] = lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool)
    )
    files.atomic_write(
        path, environment.get_template(template).render(disclaimer=DISCLAIMER, **values)
    )
    return path


def brief(value: Any) -> str:
    """A parameter's value on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
