"""Archives and remote files: one small adapter each. What arrives is checked before anything reads it."""
