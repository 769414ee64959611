"""Which views of a release class maps are drawn from."""
