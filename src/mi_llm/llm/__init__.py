"""External language models: what they are asked, and how their answers are recorded."""
