"""The completion form for lm-evaluation-harness, with each option's own likelihood per character.

lm-eval moves the newline at the prompt's end into every option, and acc_norm would divide its
likelihood by the option's length too. One more request measures that newline alone.
"""

import dataclasses
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class CompletionTask(ConfigurableTask):
    """A multiple-choice task in which acc_norm divides nothing but the option's text."""

    def __init__(self, config: dict[str, Any] | None = None, **given: Any) -> None:
        own = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config=own, **given)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **given: Any) -> list[Instance]:
        """Return a request for each option, and one for what stands before all of them."""
        options = super().construct_requests(doc, ctx, **given)
        before = dataclasses.replace(options[0], arguments=(ctx, ""), idx=len(options))
        return [*options, before]

    def process_results(
        self, doc: dict[str, Any], results: list[tuple[float, bool]]
    ) -> dict[str, Any]:
        """Score an item by the likelihoods of its options, without what stands before them."""
        *options, (before, _) = results
        own = [(likelihood - before, is_greedy) for likelihood, is_greedy in options]
        return super().process_results(doc, own)
