"""Language models on this machine: load, encode, train, answer; what they take."""
