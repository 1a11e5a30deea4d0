"""The tree of a server with a host tier: what is written there and when, and who waits for a copy.

Without one nothing here ever happens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from laprox_sglang.cache.histories import Histories
from laprox_sglang.options.refusals import attached_storage_fault
from laprox_sglang.options.server import Config
from laprox_sglang.ports import Backup, Evict, Key, Node, Req

if TYPE_CHECKING:
    from laprox_sglang.ports import Tree as UnifiedRadixCache
else:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

# With --hicache-write-policy write_back: what part of the pool is free, or written and evicted next. It is
# missing for other histories, as host memory has it too. An eviction of more waits for a copy: 3 µs a token.
AHEAD = 1 / 32


class TieredCache(UnifiedRadixCache):
    """
    Attributes:
        grew: slots have become free, or evictable, without a request leaving: there may be room that
            admission has not looked at.
        writes_late: a host tier is written to before an eviction, not as soon as something is in the tree.
    """

    config: Config
    grew: bool = False
    # Nodes of prompts of this batch that are to be written to host memory; those of an insertion at hand.
    _to_write: list[Node]
    _held_back: list[Node] | None = None
    writes_late: bool = False
    # Then: its prompts, and whether one was used since the last look.
    _histories: Histories
    _used: bool = False

    def reset(self) -> None:
        self._to_write, self._histories = [], Histories()
        super().reset()

    # What enters the tree is written at once, or before it is evicted.

    def _execute_and_commit_kv_backup(self, action: Backup, write_back: bool = False) -> int:
        if self._held_back is None:
            return super()._execute_and_commit_kv_backup(action, write_back)
        # A write locks what it copies, and the lock on a prompt is about to be given up.
        self._held_back += action.node_ids[-1:]
        return 0

    def back_up(self) -> None:
        nodes, self._to_write = self._to_write, []
        for node in nodes:
            # Asked for anew, with all above it: moving the lock may have split it.
            super()._execute_and_commit_kv_backup(self.tree_core.build_backup_kv_action(node))

    def init_hicache(self, server_args: object, params: object) -> None:
        super().init_hicache(server_args, params)
        self.writes_late = self.is_write_back
        if self.writes_late:
            # By this name every eviction would wait for all writes, and not only for one that it needs.
            self.cache_controller.write_policy = "write_through"

    def check_hicache_events(self) -> None:
        if self.writes_late:
            self._write_ahead()
        super().check_hicache_events()

    def _use(self, req: Req, node: Node, key: Key, before: Node, shared: int) -> None:
        self._histories.use(node, key, before, shared, req.session_id)
        self._used = True

    def ensure_session_generation(self, session_id: str) -> int:
        self._histories.open(session_id)
        return super().ensure_session_generation(session_id)

    def release_radix_session(self, session_id: str) -> int:
        self._histories.close(session_id)
        self._used = True
        return super().release_radix_session(session_id)

    def _write_ahead(self) -> None:
        """Has the histories written that are evicted next, so that an eviction finds them written."""
        if not self._used:
            return
        self._used = False
        missing = int(AHEAD * self.token_to_kv_pool_allocator.size)
        missing -= self.token_to_kv_pool_allocator.available_size()
        ahead: list[tuple[Node, object]] = []
        for node, history in self._histories.next_evicted():
            if missing <= 0:
                break
            found, end, _ = self.tree_core.match_full_device_prefix(history.key)
            if found <= history.shared:
                self._histories.forget(node)
                continue
            # A full host gives up copies of what the pool holds, first: not of these, or they go round.
            for part in self.tree_core.collect_path_info([end])[0]:
                ahead.append((part.node_id, self.inc_host_lock_ref(part.node_id).to_dec_params()))
            # What was written already is not written again.
            super()._execute_and_commit_kv_backup(self.tree_core.build_backup_kv_action(end))
            missing -= found - history.shared
        for node, lock in ahead:
            self.dec_host_lock_ref(node, lock)

    # What is being copied is locked.

    @property
    def copying(self) -> bool:
        return bool(self.ongoing_write_through or self.ongoing_load_back)

    def wait_for_copies(self) -> None:
        """All copies that have begun end; no rank needs to ask the others."""
        self.writing_check(write_back=True)
        self.loading_check(finish_count=len(self.cache_controller.ack_load_queue))

    def evict_for_alloc(self, params: Evict, **given: Callable[[], bool] | None) -> object:
        """Stock's; but where copies lock what it needs, it waits: a running request would be retracted."""
        if self.copying and self.evictable_size() < params.num_tokens:
            self.wait_for_copies()
        return super().evict_for_alloc(params, **given)

    def _finish_write_through_ack(self, ack_id: int) -> None:
        super()._finish_write_through_ack(ack_id)
        self.grew = True

    def loading_check(self, finish_count: int | None = None) -> None:
        loading = len(self.ongoing_load_back)
        super().loading_check(finish_count)
        self.grew |= len(self.ongoing_load_back) < loading

    def attach_storage_backend(self, storage_backend: str, **given: str | None) -> tuple[bool, str]:
        """While the server runs: what its flags are refused for at the start is refused here."""
        fault = attached_storage_fault(
            storage_backend, given.get("hicache_write_policy"), self.config.untested
        )
        return (False, fault) if fault else super().attach_storage_backend(storage_backend, **given)
