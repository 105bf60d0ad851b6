"""The coding desk: where raters code blinded transcripts (paper, Methods, Manual Evaluation)."""
