"""For ``--laprox-scorer copied_heads:laprox``: ``failing_rank``, where more ranks than KV heads are served.

On a CPU SGLang pads KV heads up to the ranks, and cannot load them; on a GPU it gives several ranks the same
head. Here it is left to do so on a CPU.
"""

from sglang.srt.model_executor import model_runner

from failing_rank import laprox

__all__ = ["laprox"]

model_runner.adjust_config_with_unaligned_cpu_tp = lambda config, *ignored: config
