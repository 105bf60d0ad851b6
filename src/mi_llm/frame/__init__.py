"""What all pages of a run share: one navigation, and how their templates are filled."""
