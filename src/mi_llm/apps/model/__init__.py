"""The model server: base and tuned counselor models of a study behind OpenAI's protocol."""
