"""Preference tuning, an optional stage."""
