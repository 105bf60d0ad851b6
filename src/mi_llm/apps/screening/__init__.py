"""The page on which a person decides which transcribed dialogs are kept."""
