"""Single tools for one's own files, without a study: `commands.py` has a command for each, `mi_llm.api` their functions."""
