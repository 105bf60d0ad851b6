"""Phase 1, corpora: bring them here, verified, and read them."""
