"""Phase 6, what came out: tables, figures, the page."""
