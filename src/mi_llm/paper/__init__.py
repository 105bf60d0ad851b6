"""What the paper says: facts that more than one phase needs, each once."""
