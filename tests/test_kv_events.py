"""SGLang's KV events (``--kv-events-config``): what they say is held is what the tree holds, at every step.

Whoever routes by them sees exact prompts; views and what is generated over them are in no node of the tree.
"""

import random

import pytest
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from fakes import CONFIG, Scheduler, sglang_context
from test_memory_properties import check_tree

REQUESTS = 40


class Listener:
    """What a subscriber takes the tree to hold: the tokens up to each block, by its hash."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, ...]] = {}
        self.stored = self.removed = 0

    def hear(self, event) -> None:
        if isinstance(event, BlockStored):
            before = self.held.get(event.parent_block_hash, ())
            # A node of the tree at a time, a block for each of its tokens.
            for block, token in zip(event.block_hashes, event.token_ids, strict=True):
                assert block not in self.held, "stored twice"
                before = self.held[block] = (*before, token)
                self.stored += 1
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                del self.held[block]
                self.removed += 1
        else:
            # A new tree says that it is empty.
            assert isinstance(event, AllBlocksCleared) and not self.held

    def check(self, scheduler: Scheduler) -> None:
        for event in scheduler.tree_cache.take_events():
            self.hear(event)
        assert sorted(self.held.values()) == sorted(check_tree(scheduler))


@pytest.mark.parametrize("tree", ["rust", "python"])
@pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
def test_events_say_what_the_tree_holds(tree, overlap, seed):
    draw, listener = random.Random(seed), Listener()
    base = draw.choices(range(4), k=20)
    with sglang_context():
        scheduler = Scheduler(90, config=CONFIG, tree=tree, overlap=overlap, kv_events=True)
        for number in range(REQUESTS):
            shared = base[: draw.randint(5, 20) * (number % 2)]
            prompt = [*shared, *draw.choices(range(4), k=draw.randint(10, 30))]
            options = draw.choice([{}, {"budget": 0.2}, {"keep_prefix": 5}, {"enabled": False}])
            scheduler.arrive(prompt, draw.choice([1, 4, 9]), **options)
            for _ in range(3):
                scheduler.step(draw.choice([7, 1024]), retract=draw.random() < 0.05)
                listener.check(scheduler)
        while not scheduler.idle():
            scheduler.step()
            listener.check(scheduler)
    assert listener.stored == listener.removed + len(listener.held) and listener.removed > 100
    assert scheduler.laprox.report.totals.prunes > 10
