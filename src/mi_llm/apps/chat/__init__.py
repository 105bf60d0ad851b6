"""The chat: a page on which people talk with the counselor models, behind a crisis guard."""
