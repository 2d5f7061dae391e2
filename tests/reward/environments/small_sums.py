"""An environment of the verifiers package, as its users write them: sums, with rewards of several weights and a metric."""

import asyncio
import os
import time

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str
    difficulty: float = 1.0


class SumTaskConfig(vf.TaskConfig):
    brief: int = 20
    """Longest reply that counts as brief, in characters."""


class SumTask(vf.Task[SumData, vf.State, SumTaskConfig]):
    @vf.reward(weight=1.0)
    async def correct(self, task, trace) -> float:
        return float(trace.last_reply.split()[-1:] == [task.answer])

    @vf.reward(weight=0.25)
    async def brief(self, trace) -> float:
        await asyncio.sleep(0)
        return float(len(trace.last_reply) <= self.config.brief and not trace.is_truncated)

    @vf.reward(weight=-0.5)
    async def keyed(self, trace) -> dict[str, float]:
        return {"shouts": float("!" in trace.last_reply), "asks": float("?" in trace.last_reply)}

    @vf.metric
    async def tokens(self, trace) -> float:
        return float(trace.usage.completion_tokens)

    @vf.reward(weight=0.0)
    async def fails(self, trace) -> float:
        if "waits" in trace.last_reply:
            await asyncio.sleep(60)
        if "hangs" in trace.last_reply:
            time.sleep(60)
        if "dies" in trace.last_reply:
            os._exit(3)
        if "raises" in trace.last_reply:
            raise ValueError("no such sum")
        return float("nan") if "nothing" in trace.last_reply else 0.0


class SumConfig(vf.TasksetConfig):
    count: int = 3
    task: SumTaskConfig = SumTaskConfig()


class SmallSums(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        for i in range(self.config.count):
            data = SumData(prompt=f"{i}+1=", system_prompt="Add.", answer=str(i + 1), difficulty=i / 2)
            yield SumTask(data, self.config.task)


__all__ = ["SmallSums"]
