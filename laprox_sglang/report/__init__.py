"""What is said about pruning: facts of a request, totals of a server, metrics and events made of them."""
