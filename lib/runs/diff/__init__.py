"""Two executed notebooks of each stage beside each other, as one page: make diff RUNS="a b"."""
