"""The audit: every number of the paper against its released data, its sources, and itself."""
