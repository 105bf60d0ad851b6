"""A stand-in for the hub that serves Baichuan2-7B-Chat at full size with random weights, of which almost nothing lies on disk."""
