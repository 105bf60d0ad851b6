"""What language models from outside are asked, and how their answers are recorded."""
