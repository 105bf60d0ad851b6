"""How the models act when a client is in danger: stage `safety`."""
