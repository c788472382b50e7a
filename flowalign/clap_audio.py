"""Sound as CLAP hears it: mono, at its rate, of its length, as a log-mel spectrogram.

Letters: C channels, L samples of a recording, S samples that the model hears, M mel bands, T
frames. Everything here is differentiable and depends on nothing but the recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

ZERO_CROSSINGS = 24  # of the sinc on each side
PASSED = 0.945  # share of the band that is kept, below the sharp edge
FLOOR = 1e-10  # power below which it is silence, -100 dB
FINEST = 1000  # of the ratio of rates as a fraction; its error is below a millionth


def resampled(sound: Tensor, rate_hz: float, new_rate_hz: float) -> Tensor:
    """(C, ceil(L new / old)) of (C, L): band-limited interpolation by a windowed sinc.

    y_j = sum_k x_k c sinc(c (t_j - k)) w(t_j - k), t_j = j old / new, c the narrower band, w a
    raised cosine. Weights of each phase sum to one, so a constant stays one. Outside it is silent.
    """
    ratio = Fraction(round(new_rate_hz), round(rate_hz)).limit_denominator(FINEST)
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return sound
    band = PASSED * min(up / down, 1.0)
    half = math.ceil(ZERO_CROSSINGS / band)
    places = torch.arange(-half, half + down, dtype=torch.float64)
    apart = places - torch.arange(up, dtype=torch.float64)[:, None] * down / up  # (up, K)
    window = torch.cos(math.pi / 2 * (apart / half).clamp(-1, 1)).square()
    kernel = torch.sinc(band * apart) * window
    kernel = (kernel / kernel.sum(-1, keepdim=True)).to(sound)
    padded = F.pad(sound, (half, half + down))
    phases = F.conv1d(padded[:, None], kernel[:, None], stride=down)  # (C, up, blocks)
    length = math.ceil(sound.shape[-1] * up / down)
    return phases.transpose(1, 2).reshape(len(sound), -1)[:, :length]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hearing:
    """How a CLAP wants its sound."""

    rate_hz: int
    length: int  # S
    window: int  # samples of a Fourier transform
    hop: int  # samples between frames
    mel: Tensor  # (window / 2 + 1, M), the filter bank
    copies: int  # how often a fused model wants the spectrogram: 4; others 1

    def fitted(self, sound: Tensor, rate_hz: float) -> Tensor:
        """(S,) of (C, L): mean of the channels, resampled; the middle, or repeated as it fits.

        A short recording is repeated a whole number of times and followed by silence.
        """
        mono = resampled(sound.float().mean(0, keepdim=True), rate_hz, self.rate_hz)[0]
        if len(mono) > self.length:
            start = (len(mono) - self.length) // 2
            return mono[start : start + self.length]
        mono = mono.repeat(self.length // len(mono))
        return F.pad(mono, (0, self.length - len(mono)))

    def spectrogram(self, mono: Tensor) -> Tensor:
        """(copies, T, M) in dB of (S,): power of a Hann-windowed Fourier transform, mel bands."""
        window = torch.hann_window(self.window, device=mono.device)
        waves = torch.stft(
            mono, self.window, self.hop, window=window, center=True, return_complex=True
        )
        power = waves.real.square() + waves.imag.square()
        bands = power.T @ self.mel.to(power)
        return (10.0 * bands.clamp(min=FLOOR).log10()).expand(self.copies, -1, -1)
