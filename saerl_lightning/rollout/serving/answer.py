"""Reads a server's answer to one prompt: a whole group, sampled from the run's own weights, or a fault that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saerl_lightning.rollout.serving.connection import ServerFault
from saerl_lightning.rollout.serving.weights_version import Claim


@dataclass(frozen=True)
class CompletionGroup:
    """The completions of one prompt, in the order of their index.

    Args:
        completions: Token ids of each completion.
        logprobs: Log-probabilities of the tokens under the distribution that was sampled.
        truncated: Whether `max_tokens` cut the completion off.
    """

    completions: list[list[int]]
    logprobs: list[list[float]]
    truncated: list[bool]


class ForeignWeights(Exception):
    """An answer from other weights than the run's.

    Args:
        said: What the server did, as the end of a sentence that begins with its address.
        is_stop: Whether somebody else sets this server's weights, so that none of its answers can be trusted.
    """

    def __init__(self, said: str, is_stop: bool) -> None:
        super().__init__(said)
        self.is_stop = is_stop


def read_group(answer: Any, body: dict[str, Any], weights: str) -> CompletionGroup:
    """Reads the answer to a request for a group.

    Args:
        answer: JSON of the answer.
        body: Content of the request.
        weights: Version of the weights that all tokens must come from.

    Raises:
        ServerFault: if it is no whole group, or is the answer to another request.
        ForeignWeights: if a token was sampled from other weights.
    """
    try:
        if not answer["request_id"].endswith(body["request_id"]):
            raise ServerFault(f"answered another request ({answer['request_id']!r:.60})")
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(body["sampling_params"]["n"])):
            said = [choice["index"] for choice in choices]
            raise ServerFault(f"gave the completions {said!r:.60} where {body['sampling_params']['n']} were asked for")
        _require_weights(choices, weights)
        if unfinished := [c["finish_reason"] for c in choices if c["finish_reason"] not in ("stop", "length")]:
            raise ServerFault(f"ended a completion with {unfinished[0]!r:.40}")
        group = CompletionGroup(
            [choice["token_ids"] for choice in choices],
            [[each["logprob"] for each in choice["logprobs"]["content"]] for choice in choices],
            [choice["finish_reason"] == "length" for choice in choices],
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ServerFault(f"gave an answer that is none of vLLM's /inference/v1/generate ({error!r:.80})") from error
    if any(not ids or len(ids) != len(values) for ids, values in zip(group.completions, group.logprobs, strict=True)):
        raise ServerFault("gave a completion without tokens, or without a log-probability for each")
    return group


def _require_weights(choices: list[dict[str, Any]], weights: str) -> None:
    found = {span["version"] for choice in choices for span in choice["weight_versions"]}
    if found == {weights}:
        return
    other = next((each for each in sorted(found) if each != weights), "none at all")
    claim = Claim.read(other)
    if claim is None or claim.is_same(weights):
        raise ForeignWeights(f"samples from other weights ({other!r:.60}) than it was sent; was it restarted?", False)
    raise ForeignWeights(
        f"got its weights from {claim.who}, and not from this run alone; give each run servers of its own", True
    )
