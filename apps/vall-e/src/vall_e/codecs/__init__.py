"""Audio codecs: samples to integer codes and back."""
