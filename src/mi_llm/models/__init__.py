"""Phase 3, models: base, fine-tuning, answers to the test rounds."""
