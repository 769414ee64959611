"""What a training sees: epochs over releases and subsets of them."""
