"""Methods of single papers, each in a folder of its own. The core loads them when their name is asked for."""
