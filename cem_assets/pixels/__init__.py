"""Reading pixels for training: the reader, its cache, and the Parquet shards."""
