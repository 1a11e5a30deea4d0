"""What is asked of a server: sessions of steps, and the token ids that their prompts are made of."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from laprox_tools.needle import CLASSES


@dataclass(frozen=True)
class Step:
    """One request of a session; lengths in tokens.

    Attributes:
        prompt: of the whole prompt.
        shared: how much of its beginning stood in the prompt of the step before.
        output: how much is generated.
        pause: seconds between the end of the step before and this one.
    """

    prompt: int
    shared: int
    output: int
    pause: float = 0.0


@dataclass(frozen=True)
class Session:
    """
    Attributes:
        seed: of its random ids; two sessions of one seed send the same.
        head: (seed, tokens) of the parts that its first prompt begins with and that other sessions share.
        start: seconds after the trace's beginning, where it says so.
    """

    seed: str
    steps: tuple[Step, ...]
    head: tuple[tuple[str, int], ...] = ()
    start: float = 0.0


# Of a recorded step at most so much is not shared only because it is no whole block.
BLOCK = 64


def words(source: random.Random, count: int) -> list[int]:
    """Random token ids that stand for words of every model at hand; no control token is among them."""
    first, last = CLASSES["DIGIT"].start, CLASSES["ADVERB"].stop
    return source.choices(range(first, last), k=count)


def first_prompt(session: Session, step: Step, source: random.Random) -> list[int]:
    ids = [number for seed, count in session.head for number in words(random.Random(seed), count)]
    return ids[: step.prompt] + words(source, step.prompt - len(ids))


def next_prompt(said: Sequence[int], prompt: int, step: Step, source: random.Random) -> tuple[list[int], int]:
    """The prompt of a later step, and how much of its beginning the server has seen.

    Where the recording shares all of the prompt before, the answer to it stands in the next one, too, as an
    agent sends it. Where it shares less (a compaction, another context), that much is kept.

    Args:
        said: prompt and answer of the step before.
        prompt: length of that prompt.
    """
    whole = step.shared + BLOCK > prompt
    kept = list(said[: min(len(said), step.prompt - 1) if whole else step.shared])
    return kept + words(source, step.prompt - len(kept)), len(kept)


@dataclass(frozen=True)
class Workload:
    """One row of the results that sends a fixed number of sessions and waits for all. Lengths in tokens.

    Attributes:
        output: tokens that each turn generates.
        shared: length of the prompt that all sessions of a group share, or all at all.
        groups: how many groups; their shared prompts are cached before the run.
        keep: what LaProx keeps dense of each prompt.
        addition: what the user adds in each later turn.
        clients: sessions at once; 0 sends all of them at time 0.
        rounds: measured runs; a figure is their median.
        pruned: share of the requests that must be pruned.
    """

    name: str
    what: str
    requests: int
    prompt: int
    output: int
    shared: int = 0
    groups: int = 0
    keep: int = 0
    turns: int = 1
    addition: int = 0
    clients: int = 0
    rounds: int = 1
    pruned: float = 1.0

    def sessions(self, number: int) -> tuple[list[Session], list[Session]]:
        """Unmeasured sessions and measured ones of a round; the same for every server."""
        lengths = [self.shared + self.prompt]
        steps = [Step(lengths[0], 0, self.output)]
        for _ in range(1, self.turns):
            before = steps[-1].prompt
            steps.append(Step(before + self.output + self.addition, before, self.output))
        name = f"{self.name} {number}"
        heads = [((f"{name} group {i}", self.shared),) for i in range(max(1, self.groups))]
        sessions = [
            Session(f"{name} {i}", tuple(steps), heads[i % len(heads)] if self.shared else ())
            for i in range(self.requests)
        ]
        first = (replace(steps[0], output=min(8, self.output)),)
        if self.groups:
            warm = [Session(f"{name} warm {i}", first, head) for i, head in enumerate(heads)]
            random.Random(name).shuffle(sessions)
        else:
            # One request of the same shape pays for whatever is compiled at first use.
            warm = [Session(f"{name} warm", first)] if number == 0 else []
        return warm, sessions
