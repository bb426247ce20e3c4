"""The embedded demo corpus: sentences and the espeak-ng voices that speak them."""
