"""JudgeReward: the grade that a language model behind an OpenAI-compatible server gives to a completion."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, Deadline, Finite, NotNegative, Range, Seed, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.failures import Failures
from saerl_lightning.reward.judging.apart import Apart
from saerl_lightning.reward.judging.question import DEFAULT, STAND_IN, QuestionTemplate, Unwritten
from saerl_lightning.reward.judging.reply import Reply
from saerl_lightning.reward.judging.reply_cache import ReplyCache, key_of
from saerl_lightning.reward.judging.server import Body, ChatServer
from saerl_lightning.reward.judging.verdict import NoVerdict, VerdictReader
from saerl_lightning.reward.reward import Reward

Concurrency = Annotated[int, Range(1, 4096)]
OWN = ("model", "messages", "stream", "n")  # fields of a request that options may not change


class JudgeReward(Reward):
    r"""Gives the grade that a language model, the judge, gives to a completion.

    The judge is any server with OpenAI's chat completions: vLLM, SGLang, llama.cpp, or a provider. It must answer before
    anything is loaded, or the run is refused. Later, a question that stays without a reply after its retries is not
    graded (NaN), and counted in `reward/NAME/failed_frac`; so is a reply without a verdict, which is counted apart as
    `reward/NAME/count/unparsed` too.

    Only the judge's reply is searched for the verdict, never the completion, and the last match counts. What remains: a
    judge reads the completion, and may be talked into a grade, or quote one as its last words. Look at completions with
    high grades; a judge that must choose among given words (vLLM's `structured_outputs` in `options`) can't quote.

    Replies are kept on disk under all that decides them (address, model, messages, sampling), so that a run that is
    repeated or resumed asks nothing twice. Delete the folder where another model goes by the same name.

    Args:
        url: Base address of the server's API, as `http://127.0.0.1:8000/v1`.
        model: Name of the judge, as the server knows it.
        template: Jinja template of the question, as text or as a file that ends in .jinja. It may show `prompt` (text),
            `messages`, `completion`, `answer`, `columns` (the row, as in `columns.rubric`), `labels`, `topic`, `source`,
            and `mark`, a text to put around the completion, which no completion can contain.
        system: System message for the judge; null sends none.
        pattern: Regular expression that finds the verdict in the reply. The last match counts, and of it the first
            group, if there is one. What stands before the last `</think>` never counts.
        verdicts: Grades of words, as in {"yes": 1, "no": 0}, where the verdict is a word; null where it is a number.
        scale: Lowest and highest number of the judge, which become 0 and 1; a number outside is no verdict. Null takes
            numbers as they are. It does not apply to `verdicts`.
        temperature: Sampling temperature of the judge; null leaves it to the server.
        max_tokens: Largest number of tokens of a reply; null leaves it to the server.
        seed: Sampling seed of the judge; null sends none.
        options: Further fields of a request, as in {reasoning_effort: low}; null gives none.
        api_key_env: Name of the environment variable that holds the API key; null sends no key. The key itself is
            written nowhere.
        concurrency: Largest number of requests at a time, of each process.
        retries: Largest number of repetitions of a request that was refused for now (408, 409, 425, 429, 5xx), broke
            off, overran its deadline or gave no chat completion.
        backoff_s: Time before the first repetition, in seconds; doubled before each further one, up to a minute, with a
            random part. `Retry-After` of the server comes on top.
        deadline_s: Largest time of one request, in seconds, from connecting to the last byte.
        batch_deadline_s: Largest time for all completions that are graded together, in seconds.
        cache: Folder for the replies, which runs may share; null keeps none.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if an argument can't be used, or the judge does not answer at the start.
    """

    def __init__(
        self,
        url: str,
        model: str,
        template: str = DEFAULT,
        system: str | None = None,
        pattern: str = r"(?i)\bscore\b[^\w-]*(-?\d+(?:\.\d+)?)",
        verdicts: dict[str, Finite] | None = None,
        scale: tuple[Finite, Finite] | None = (0.0, 10.0),
        temperature: NotNegative | None = 0.0,
        max_tokens: Count | None = 512,
        seed: Seed | None = 0,
        options: dict[str, Any] | None = None,
        api_key_env: str | None = None,
        concurrency: Concurrency = 16,
        retries: CountFrom0 = 4,
        backoff_s: Deadline = 1.0,
        deadline_s: Deadline = 60.0,
        batch_deadline_s: Deadline = 600.0,
        cache: str | None = "runs/judge",
        weight: Finite = 1.0,
        name: str | None = None,
    ) -> None:
        if taken := [each for each in OWN if each in (options or {})]:
            raise InputError(f"JudgeReward.options has '{taken[0]}', which is set by the reward itself; leave it out")
        self.question = QuestionTemplate(template, system)
        self.verdict = VerdictReader(pattern, verdicts, scale)
        self.server = ChatServer(url, api_key_env, concurrency, retries, backoff_s, deadline_s, batch_deadline_s)
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self.settings = {"model": model, **sampling, **(options or {})}
        self.cache = None if cache is None else ReplyCache(Path(cache))
        # Labels that were measured with other grades are told apart by it.
        self.decides = key_of(url, {**self.settings, "is": [template, system, pattern, verdicts, scale]})[:16]
        self.weight = weight
        self._name = name
        self.counts: Counter[str] = Counter()  # since they were drained last
        self.failures = Failures()
        self._apart = Apart()
        settings = {
            **sampling,
            "verdicts": verdicts,
            "scale": scale,
            "concurrency": concurrency,
            "retries": retries,
        }
        times = {"backoff_s": backoff_s, "deadline_s": deadline_s, "batch_deadline_s": batch_deadline_s}
        require_in_range(self, **settings, **times)
        self.question.check()
        self.verdict.check()

    @property
    def last_failure(self) -> str:
        """Reason of the last NaN, with what the server said."""
        return self.failures.last

    def check(self) -> None:
        """Asks the judge for two letters.

        Raises:
            InputError: if it can't be reached, or refuses the request, with what it said.
        """
        reply = self.server.first(self._body([{"role": "user", "content": "Answer with OK."}]), self._apart)
        if reply.failure:
            raise InputError(
                f"the judge '{self.settings['model']}' at {self.server.endpoint} {reply.failure}; start the server, or "
                f"correct url, model, options or api_key_env of the reward '{self.name}'"
            )

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Writes the question of every prompt once.

        Raises:
            InputError: if the template raises, naming the prompt.
        """
        for prompt in prompts:
            try:
                self.question.messages(prompt, STAND_IN)
            except Unwritten as error:
                raise InputError(
                    f"the template of the reward '{self.name}' fails for the prompt {prompt.uid!r} and the completion "
                    f"{STAND_IN!r}: {error}; its columns are {', '.join(prompt.columns) or 'none'}"
                ) from error

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Asks the judge about every completion; equal questions are asked once."""
        asked = [prompts[row // rollouts.group_size] for row in range(len(rollouts.texts))]  # R
        bodies = [self._question(prompt, text) for prompt, text in zip(asked, rollouts.texts, strict=True)]
        replies = self._replies({key_of(self.server.endpoint, body): body for body in bodies if isinstance(body, dict)})
        scores = [
            self._score(
                body if isinstance(body, Reply) else replies[key_of(self.server.endpoint, body)], prompt.uid, text
            )
            for body, prompt, text in zip(bodies, asked, rollouts.texts, strict=True)
        ]
        return torch.tensor(scores, device=rollouts.mask.device).view(len(prompts), rollouts.group_size)

    def drain_counts(self) -> dict[str, float]:
        """Returns how many questions were asked and repeated and how many replies had no verdict, since the last call."""
        counts, self.counts = self.counts, Counter()
        return {name: float(counts[name]) for name in ("asked", "repeated", "unparsed")}

    def interrupt(self) -> None:
        """Cancels the requests that another thread waits for."""
        self._apart.cancel()

    def close(self) -> None:
        """Cancels what is still asked, and closes the file of replies."""
        self._apart.cancel()
        if self.cache is not None:
            self.cache.close()

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A request; what is null is left to the server."""
        return {"messages": messages, **{name: value for name, value in self.settings.items() if value is not None}}

    def _question(self, prompt: Prompt, completion: str) -> dict[str, Any] | Reply:
        try:
            return self._body(self.question.messages(prompt, completion))
        except Unwritten as error:
            return Reply(failure=f"was never asked, because the template failed: {error}")

    def _replies(self, bodies: Mapping[str, Body]) -> dict[str, Reply]:
        """The reply to each question, from disk where it is there."""
        found = {key: reply for key in bodies if self.cache is not None and (reply := self.cache.get(key))}
        keys = [key for key in bodies if key not in found]

        def keep(row: int, reply: Reply) -> None:
            if self.cache is not None:
                self.cache.add(keys[row], reply)

        answered = self.server.ask([bodies[key] for key in keys], keep, self._apart)
        self.counts["asked"] += len(keys)
        self.counts["repeated"] += sum(reply.retries for reply in answered)
        return found | dict(zip(keys, answered, strict=True))

    def _score(self, reply: Reply, uid: str, text: str) -> float:
        if reply.failure:
            return self._failed(reply.failure, uid, text)
        try:
            return self.verdict.grade(reply)
        except NoVerdict as error:
            self.counts["unparsed"] += 1
            return self._failed(f"gave a reply that {error}", uid, text)

    def _failed(self, did: str, uid: str, text: str) -> float:
        self.failures.note("a completion", f"was not graded: the judge at {self.server.endpoint} {did}", uid, text)
        return math.nan
