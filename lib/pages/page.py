"""Render the HTML pages: one base template, escaped text, nothing fetched.

A content policy in each page forbids the browser to fetch anything.
"""

import json
import pathlib
from typing import Any

import jinja2

from lib.common import files, text
from lib.medical.disclaimer import DISCLAIMER

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write_page(path: pathlib.Path, template: str, **values: Any) -> pathlib.Path:
    """Render templates/<template> into `path`, and return the path."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(form=text.format_value, size=text.format_size)
    environment.tests["measure"] = _is_measure
    page = environment.get_template(template).render(disclaimer=DISCLAIMER, **values)
    files.atomic_write(path, page)
    return path


def _is_measure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_parameter(value: Any) -> str:
    """Format a parameter's value on one line."""
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, ensure_ascii=False)
