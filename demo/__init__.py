"""What make demo runs, and the photographs that it trains on."""
