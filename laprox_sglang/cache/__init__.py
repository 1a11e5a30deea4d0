"""The KV pool, and the prefix cache over it: the tree is exact, whoever runs over a view of it."""
