"""Options of a server and of a request, and what of SGLang does not go with LaProx."""
