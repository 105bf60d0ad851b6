"""Phase 4, automatic evaluation: text scores and how sure they are."""
