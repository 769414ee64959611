"""The data of a training: epochs over releases and over subsets of them."""
