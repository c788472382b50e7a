"""The step's law against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flowalign.gaussian import Gaussian, full_precision, per_sample

SHAPE = (5, 3, 4, 4)


def pair(dtype: torch.dtype) -> tuple[Gaussian, Gaussian, torch.Tensor]:
    key = torch.Generator().manual_seed(1)
    first, second, x = (torch.randn(SHAPE, generator=key, dtype=dtype) for _ in range(3))
    std = torch.rand(SHAPE[0], generator=key, dtype=torch.float64) + 0.1
    return Gaussian(mean=first, std=std), Gaussian(mean=second, std=std), x


# float32: a mean over 48 terms of size ~50 at std 0.1.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_log_prob_and_kl_are_means_of_torch_distributions(dtype: torch.dtype, rtol: float) -> None:
    law, other, x = pair(dtype)
    std = law.std.reshape(-1, 1, 1, 1)
    normal = Normal(law.mean.double(), std)
    log_prob = normal.log_prob(x.double()).flatten(1)
    kl = kl_divergence(normal, Normal(other.mean.double(), std)).flatten(1)
    torch.testing.assert_close(law.log_prob(x).double(), log_prob.mean(1), rtol=rtol, atol=1e-12)
    torch.testing.assert_close(law.kl(other).double(), kl.mean(1), rtol=rtol, atol=1e-12)
    # Negative control: the sum is another number.
    assert not torch.allclose(law.log_prob(x).double(), log_prob.sum(1), rtol=1e-2)


def test_gradient_reaches_the_mean_only() -> None:
    law, _, x = pair(torch.float64)
    mean = law.mean.clone().requires_grad_()
    std = law.std.clone().requires_grad_()
    x = x.clone().requires_grad_()
    Gaussian(mean=mean, std=std).log_prob(x).sum().backward()
    expected = (x - mean) / std.reshape(-1, 1, 1, 1).square() / mean[0].numel()
    torch.testing.assert_close(mean.grad, expected.detach())
    assert std.grad is None
    assert x.grad is None


def test_sample_has_the_law() -> None:
    law, _, _ = pair(torch.float64)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close((law.sample(noise) - law.mean) / law.std.reshape(-1, 1, 1, 1), noise)


def test_one_std_for_all_equals_one_for_each() -> None:
    """Bitwise, so that rollout and replay may differ in this."""
    law, _, x = pair(torch.float32)
    std = torch.tensor(0.3217, dtype=torch.float64)
    one = Gaussian(mean=law.mean, std=std)
    each = Gaussian(mean=law.mean, std=std.expand(SHAPE[0]).clone())
    assert torch.equal(one.log_prob(x), each.log_prob(x))
    assert torch.equal(one.sample(x), each.sample(x))


def test_deterministic_step_has_no_log_prob() -> None:
    law, other, x = pair(torch.float32)
    std = law.std * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    for call in (
        lambda: Gaussian(mean=law.mean, std=std).log_prob(x),
        lambda: Gaussian(mean=law.mean, std=std).kl(Gaussian(mean=other.mean, std=std)),
        lambda: law.kl(Gaussian(mean=other.mean, std=2 * law.std)),
    ):
        with pytest.raises(AssertionError):
            call()


def test_half_precision_is_promoted_and_double_kept() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert full_precision(torch.ones(2, dtype=dtype)).dtype == expected
    assert per_sample(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
