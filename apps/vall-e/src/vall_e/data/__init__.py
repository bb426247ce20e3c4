"""Datasets: from recordings to codes and phonemes in HDF5, and from there to batches."""
