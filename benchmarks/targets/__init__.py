"""Small models of each codebase, as the contract suite (benchmarks/contract.py) sees them."""
