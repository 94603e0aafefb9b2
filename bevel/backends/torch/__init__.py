"""PyTorch modules out: any ONNX graph as a trainable `nn.Module`."""
