"""Hooks where a model runner is made: KV pool, prefix cache, attention backend, graphs, ranks."""
