"""Small models of each codebase, as the contract suite (tests/contract/contract.py) sees them."""
