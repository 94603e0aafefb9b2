"""Fourier transforms, the windows before them, and the bands after them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bevel.backends.torch.table import DType, Int, Number, lower


@lower("DFT", until=19)
def dft_17(x: Tensor, dft_length: Int | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """Transform one axis to frequencies or back."""
    return dft(x, dft_length, axis, inverse=inverse, onesided=onesided)


@lower("DFT", since=20)
def dft(
    x: Tensor, dft_length: Int | None = None, axis: Int | None = None, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """Transform one axis to frequencies or back; the last axis holds real numbers, or real and imaginary parts."""
    place = (-2 if axis is None else axis) % x.dim()
    signal = _signal(x)
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal + 0j, dft_length, place)
        return real.unsqueeze(-1).to(x.dtype)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(signal + 0j, dft_length, place)).to(x.dtype)
    return _frequencies(signal, dft_length, place, bool(onesided)).to(x.dtype)


@lower("STFT")
def stft(
    x: Tensor, step: Int, window: Tensor | None = None, frame_length: Int | None = None, *, onesided: int = 1
) -> Tensor:
    """Transform overlapping frames of a signal to frequencies; real numbers may lie along no axis of their own."""
    x = x.unsqueeze(-1) if x.dim() == 2 else x
    length = frame_length if frame_length is not None else x.shape[1] if window is None else window.shape[0]
    frames = _signal(x).unfold(1, length, step)
    if window is not None:
        frames = frames * window.to(torch.promote_types(window.dtype, torch.float32))
    return _frequencies(frames, None, 2, bool(onesided)).to(x.dtype)


def _signal(x: Tensor) -> Tensor:
    """Return a real or complex signal, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(wide.contiguous())


def _frequencies(signal: Tensor, length: int | None, axis: int, onesided: bool) -> Tensor:
    if onesided and not signal.is_complex():
        return torch.view_as_real(torch.fft.rfft(signal, length, axis))
    spectrum = torch.fft.fft(signal, length, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum)


@lower("HannWindow")
def hann_window(
    size: Int, *, output_datatype: DType = torch.float32, periodic: int = 1, device: torch.device
) -> Tensor:
    """Return a Hann window."""
    return _cosines(size, periodic, (0.5, -0.5), device).to(output_datatype)


@lower("HammingWindow")
def hamming_window(
    size: Int, *, output_datatype: DType = torch.float32, periodic: int = 1, device: torch.device
) -> Tensor:
    """Return a Hamming window, whose mean is 25/46."""
    return _cosines(size, periodic, (25 / 46, -21 / 46), device).to(output_datatype)


@lower("BlackmanWindow")
def blackman_window(
    size: Int, *, output_datatype: DType = torch.float32, periodic: int = 1, device: torch.device
) -> Tensor:
    """Return a Blackman window."""
    return _cosines(size, periodic, (0.42, -0.5, 0.08), device).to(output_datatype)


def _cosines(size: int, periodic: int, weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Add cosines of one period, two periods, ... over a window; a symmetric one ends where the next would begin."""
    phase = torch.arange(size, dtype=torch.float64, device=device) * (2 * math.pi) / (size if periodic else size - 1)
    total = torch.zeros_like(phase)
    for order, weight in enumerate(weights):
        total = total + weight * torch.cos(order * phase)
    return total


@lower("MelWeightMatrix")
def mel_weight_matrix(
    bands: Int,
    dft_length: Int,
    sample_rate: Int,
    lower_edge: Number,
    upper_edge: Number,
    *,
    output_datatype: DType = torch.float32,
    device: torch.device,
) -> Tensor:
    """Return the triangles, evenly spaced on the mel scale, that turn a spectrum into bands."""
    low, high = (2595 * math.log10(1 + edge / 700) for edge in (lower_edge, upper_edge))
    mels = torch.arange(bands + 2, dtype=torch.float64, device=device) * (high - low) / (bands + 2) + low
    hertz = 700 * torch.expm1(mels / 2595 * math.log(10))
    bins = torch.floor((dft_length + 1) * hertz / sample_rate)
    start, peak, end = bins[:-2], bins[1:-1], bins[2:]
    at = torch.arange(dft_length // 2 + 1, dtype=torch.float64, device=device).unsqueeze(1)
    rising = torch.where(start == peak, 1.0, (at - start) / (peak - start).clamp(min=1))
    falling = (end - at) / (end - peak).clamp(min=1)
    sides = torch.where((at >= start) & (at <= peak), rising, torch.where((at > peak) & (at < end), falling, 0.0))
    return sides.to(output_datatype)
