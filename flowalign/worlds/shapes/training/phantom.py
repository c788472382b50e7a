"""Training with hundreds of zero text tokens at the price of one.

Without a T5 encoder, StableDiffusion3Pipeline appends `max_sequence_length` zero embeddings (256 by
default) to the text. They carry no position, so all of them stay equal in every layer, and n equal
keys act in the softmax as one key whose logit is raised by log n. One zero token with that bias is
therefore exactly n zero tokens.
Letters: B pictures, T tokens (image, text, then the zero token last).
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


def phantom_bias(number: Tensor, tokens: int) -> Tensor:
    """Attention bias (B, 1, 1, T) under which the last of T tokens counts `number` (B,) times; 0
    hides it."""
    bias = torch.zeros(len(number), 1, 1, tokens)
    bias[:, 0, 0, -1] = torch.log(number.float())
    return bias


def draw_phantoms(batch: int, generator: torch.Generator) -> Tensor:
    """How many zero tokens each picture of the batch sees: 0 for half, 256 for a third, 1 to 256
    for the rest."""
    kind = torch.rand(batch, generator=generator)
    some = torch.exp2(8 * torch.rand(batch, generator=generator)).floor()
    return torch.where(kind < 0.5, 0.0, torch.where(kind < 0.83, 256.0, some))


class BiasedJointAttention:
    """Joint attention of SD3 that honours `attention_mask` as an additive bias; diffusers' own
    ignores it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat(
            [attn.norm_q(heads(attn.to_q(image))), attn.norm_added_q(heads(attn.add_q_proj(text)))],
            dim=2,
        )
        key = torch.cat(
            [attn.norm_k(heads(attn.to_k(image))), attn.norm_added_k(heads(attn.add_k_proj(text)))],
            dim=2,
        )
        value = torch.cat([heads(attn.to_v(image)), heads(attn.add_v_proj(text))], dim=2)
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        # Written out: for 33 tokens the fused kernel's backward pass on a CPU costs a third of the
        # whole step.
        weights = torch.softmax(
            logits.float() if attention_mask is None else logits.float() + attention_mask, dim=-1
        )
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)
