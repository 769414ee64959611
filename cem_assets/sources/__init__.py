"""Archives, remote files and remote volumes, with an adapter for each kind; all that arrives is checked before it is read."""
