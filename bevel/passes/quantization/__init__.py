"""Block quantization of weights: which ones, how scales and codes are found, and the operators that read them."""
