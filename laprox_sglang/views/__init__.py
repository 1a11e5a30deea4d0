"""What a running request reads instead of its prompt: planned, scored, packed."""
