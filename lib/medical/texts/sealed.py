"""Tell whether a text is still the one that somebody read: a hash of what it says, but not of its
review.

    sealed.seal({"id": "burns-01", "question": ..., "review": {...}})     # "s5f0c3a9b1d2e4f6"
"""

import hashlib
import json
from typing import Any

LENGTH = 16  # hexadecimal digits: two of 3,000 texts share 64 bits once in 10^12 sets


def seal(entry: dict[str, Any]) -> str:
    """Return a hash of an entry of a bundled file, whatever its `review` says."""
    content = {key: value for key, value in entry.items() if key != "review"}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    # a letter first, since a spreadsheet would round what looks like a number
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
