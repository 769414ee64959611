"""Reading pixels for training: the reader, its cache, the shards."""
