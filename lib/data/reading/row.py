"""Turn a source's values into a row: its id, topic and messages, and which fields were read."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from lib.data.reading import shapes
from lib.data.reading.row_parts import multiple_choice, verdicts
from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    require_fields,
    require_unicode,
)
from lib.data.reading.row_parts.multiple_choice import Habits, UndecidedRow
from lib.params import Source

# how many rows have these fields: the names of those that were read, and of those that were not
FieldCounts = Counter[tuple[tuple[str, ...], tuple[str, ...]]]
IDS = ("id", "pubid", "pub_id")
TOPICS = ("topic", "subject_name", "subject")


class RowReader:
    """Reads the rows of one source, one after the other.

    `numbers` is the parameter `answer_numbers`. `read_again` yields (place, values) of all rows of
    the source once more; it is called at the first row whose meaning the others decide.
    """

    def __init__(self, source: Source, prefix: str, numbers: str) -> None:
        self.source = source
        self.prefix = prefix  # of the rows' ids
        self.numbers = numbers
        self.read_again: Callable[[], Iterator[tuple[str, Any]]] = lambda: iter(())
        self.habits: Habits | None = None
        self.fields: FieldCounts = Counter()
        self.verdicts = verdicts.Seen()

    def read(self, values: Any, number: int, split: str = "train") -> dict[str, Any]:
        """Return row `number` of a split of the source as {"id", "topic", "messages"}.

        A held-out row also has its "split". Raise BadRow when it cannot be read, and DroppedRow
        when it must not be trained on.
        """
        row = Fields(require_fields(values), self.source.columns)
        row_id = self._find_id(row, number, split)
        topic = str(next((row.get(name) for name in TOPICS if row.is_filled(name)), ""))
        try:
            messages = self._read_messages(row)
        except DroppedRow as dropped:
            dropped.row_id = row_id
            raise
        self.fields[row.split()] += 1
        require_unicode(row_id, topic, *(turn["content"] for turn in messages))
        own = {"id": row_id, "topic": topic, "messages": messages}
        return own if split == "train" else {**own, "split": split}

    def _find_id(self, row: Fields, number: int, split: str) -> str:
        names = [name for name in IDS if row.peek(name) not in (None, "")]
        given = row.get(names[0]) if names else None
        if given != given:  # pandas writes NaN for an empty field
            given = None
        prefix = self.prefix
        # the files of a folder's splits often number their rows alike
        if split != "train" and not str(given).startswith(f"{split}-"):
            prefix += f"{split}-"
        if given is None:
            given = f"{number:07d}" if prefix else f"row-{number:07d}"
        return f"{prefix}{given}"

    def _read_messages(self, row: Fields) -> shapes.Messages:
        if self.habits is None:
            try:
                return shapes.read_messages(row, None, self.verdicts)
            except UndecidedRow:
                self.habits = multiple_choice.find_habits(
                    self.read_again(), self.source.columns, self.numbers
                )
        try:
            return shapes.read_messages(row, self.habits, self.verdicts)
        except UndecidedRow as error:
            raise BadRow(
                f"{error}\nGive the letter in answer_letter, or say what numbers mean with the "
                f"parameter answer_numbers: from_0, from_1 or text."
            ) from None
