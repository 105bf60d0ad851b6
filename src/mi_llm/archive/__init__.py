"""The archive: one zip file from which the study runs again without a network, and which can be checked for completeness."""
