"""The certificate of a run: what was compared, where, and with what verdict."""
