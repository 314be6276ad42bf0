"""Near duplicates against pairs read by hand: how many of those that are dropped repeat the other row.

    python tests/benchmarks/near_duplicates.py FOLDER      # FOLDER holds the three sets of lib/data/README.md as *.jsonl.gz; half a minute

near_duplicates.json names 400 pairs of rows with a similarity of 0.8 or more and equal numbers and negations. 200 were drawn at random from
those of which similarity alone dropped the later row. The others have a similarity near the threshold: all that state one fact by the rule
(41 when they were drawn), and 159 that do not, at most 34 of one kind of question. A pair is a "repeat" if both questions ask the same about
the same thing (by another name, too) and the answers do not contradict each other. One reader judged each pair by its questions and by what
differs between the answers; nobody has checked the judgements.
"""

import gzip
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def read_terms(folder, wanted):
    """Return (vital, terms) of the cleaned rows with these ids."""
    from lib import params
    from lib.data import duplicates, subjects
    from lib.data.cleaning import clean

    job = params.check_values({"dataset": "pairs"}, "benchmark")
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                if row["id"] in wanted:
                    turns = zip(
                        ("user", "assistant"), (row["question"], row["answer"]), strict=True
                    )
                    messages, _, _ = clean.clean_row(
                        [{"role": role, "content": text} for role, text in turns], job
                    )
                    keys = duplicates.comparison_keys(messages)
                    found[row["id"]] = keys["vital"], subjects.unpack_terms(keys["terms"])
    return found


def main(folder):
    from lib.common.stats import wilson
    from lib.data import subjects

    judged = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    rows = read_terms(
        folder, {name for pairs in judged.values() for pair in pairs for name in pair[:2]}
    )
    for sample, pairs in judged.items():
        counts = {
            (dropped, verdict): 0 for dropped in (True, False) for verdict in ("repeat", "other")
        }
        for one, other, verdict in pairs:
            (vital, terms), (other_vital, other_terms) = rows[one], rows[other]
            dropped = vital == other_vital and subjects.state_same_fact(terms, other_terms)
            counts[dropped, verdict] += 1
        right, wrong, missed, kept = counts.values()
        low, high = wilson(right, right + wrong)
        print(
            f"{sample}: {len(pairs)} pairs, {right + missed} repeats ({(right + missed) / len(pairs):.1%}). Now dropped {right + wrong}, of which "
            f"{right} repeats ({right / (right + wrong):.1%}, 95 % {low:.1%} to {high:.1%}); kept {missed + kept}, of which {kept} are other facts "
            f"({kept / (missed + kept):.1%})"
        )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
