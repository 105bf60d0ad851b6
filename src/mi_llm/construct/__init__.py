"""Phase 2, building MI data: ask language models, rewrite, screen, split."""
