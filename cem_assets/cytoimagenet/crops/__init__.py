"""The images of weak labels: channels, crops, their quality."""
