"""Make sentences of made-up words, for tests of duplicates and contamination."""

import itertools

VOCABULARY = [
    "".join(w)
    for w in itertools.islice(itertools.product("bcdfgh", "aeiou", "lmnprst", "aeiou"), 0, 1000, 3)
]


def sentence(rng, length=60):
    return [rng.choice(VOCABULARY) for _ in range(length)]
