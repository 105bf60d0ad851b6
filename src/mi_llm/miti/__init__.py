"""Phase 5, manual evaluation: coding by MITI, and how far coders agree."""
