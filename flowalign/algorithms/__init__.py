"""Training algorithms: one objective a file."""

from __future__ import annotations

from flowalign.algorithms.grpo import GRPO
from flowalign.algorithms.nft import NFT
from flowalign.config.algorithms import AlgorithmConfig, GRPOConfig, NFTConfig
from flowalign.protocols import Algorithm, Path, Sampler

__all__ = ["GRPO", "NFT", "algorithm"]


def algorithm(config: AlgorithmConfig, sampler: Sampler, path: Path) -> Algorithm:
    """The algorithm of a config, for rollouts of `sampler` along `path`."""
    match config:
        case GRPOConfig():
            return GRPO(config, sampler, path)
        case NFTConfig():
            return NFT(config)
