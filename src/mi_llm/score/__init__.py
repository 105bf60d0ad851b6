"""Phase 4, automatic evaluation: text scores and their uncertainty."""
