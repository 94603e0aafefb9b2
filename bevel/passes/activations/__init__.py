"""Activations in 8 bits: their ranges, the forms that ONNX Runtime fuses, and what each layer loses by them."""
