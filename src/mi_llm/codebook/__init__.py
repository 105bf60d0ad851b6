"""MITI 4.2.1: its codes, packets and tables of codes, and a coder by words alone."""
