"""Flipbooks and cubes around informative patches."""
