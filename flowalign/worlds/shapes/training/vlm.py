"""Train the tiny vision-language model: `python -m flowalign.worlds.shapes.training.vlm --minutes
30 --out DIR`.

A `LlavaForConditionalGeneration` whose vision tower starts as the first two layers of the built-in
CLIP. It learns to answer yes or no about rendered pictures of the training split, to compare two
pictures, and to describe one. Loss: cross-entropy of the first answer token, which for yes/no is
-[y log r + (1 - y) log(1 - r)] (RewardDance, arXiv 2509.08826), plus that of a description.
Under `torchrun --nproc-per-node K` the K processes each take a batch and share the gradient.
Letters: B rows, N pictures a row, S text tokens, P = 64 N picture tokens.
"""

# transformers declares tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import argparse
import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from flowalign.worlds.shapes.models import clip_path
from flowalign.worlds.shapes.training.checkpoint import (
    Budget,
    cosine,
    load_state,
    log_line,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from flowalign.worlds.shapes.training.vlm_data import (
    Packed,
    Rows,
    allowed,
    pack,
    pair_rows,
    single_rows,
)
from flowalign.worlds.shapes.training.vlm_tokenizer import IMAGE, PAD, build_tokenizer

PICTURE_TOKENS = 64
WIDTH = 128
VISION_LAYERS = 2
EMA_DECAY = 0.995
NOISE = 0.05  # standard deviation of pixel noise at most
SAVE_EVERY_SECONDS = 120


def build_vlm() -> Llava:
    """Vision as the built-in CLIP (width 96, 2 layers, 4-pixel patches); Llama of width 128, 4
    layers, 4 heads."""
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_attention_heads=3,
        num_hidden_layers=VISION_LAYERS,
        image_size=32,
        patch_size=4,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(PAD),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),  # type: ignore[call-arg]
        image_seq_length=PICTURE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return Llava(config)


def start_from_clip(vlm: Llava, clip: CLIPModel) -> None:
    """Copy the vision tower's embeddings and first layers."""
    own = vlm.model.vision_tower.state_dict()
    prefix = "" if next(iter(clip.vision_model.state_dict())) in own else "vision_model."
    given = {prefix + name: value for name, value in clip.vision_model.state_dict().items()}
    vlm.model.vision_tower.load_state_dict({name: given[name] for name in own})


def answers(vlm: Llava, pictures: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """Logits (A, vocabulary) at the A places where something is asked, and the targets (A,).

    `pictures` (B, N, 3, 32, 32) in [0, 1]. Equal to the model's own forward on each text alone.
    """
    rows, number = pictures.shape[:2]
    pixels = (pictures.flatten(0, 1) - 0.5) / 0.5
    seen = vlm.model.get_image_features(pixel_values=pixels).pooler_output
    seen = torch.stack(list(seen)).unflatten(0, (rows, number)).flatten(1, 2)
    prefix = number * PICTURE_TOKENS
    inside = torch.cat([seen, vlm.get_input_embeddings()(packed.ids).to(seen.dtype)], dim=1)
    position = torch.cat([torch.arange(prefix).expand(rows, -1), packed.position + prefix], dim=1)
    hidden = vlm.model.language_model(
        inputs_embeds=inside,
        attention_mask=allowed(packed.segment, prefix),
        position_ids=position,
        use_cache=False,
    ).last_hidden_state[:, prefix:]
    asked = packed.target != -100
    return vlm.lm_head(hidden[asked]).float(), packed.target[asked]


def build_optimizers(vlm: Llava, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the language layers, AdamW for the rest, slower in the vision
    tower."""
    matrices, rest, vision = [], [], []
    for name, parameter in vlm.named_parameters():
        if "vision_tower" in name:
            vision.append(parameter)
        elif ".layers." in name and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": rest, "lr": learning_rate / 2},
        {"params": vision, "lr": learning_rate / 4},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
    return [muon, adam]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Muon")
    parser.add_argument("--pictures", type=int, default=16_000, help="of each process")
    parser.add_argument("--pair-every", type=int, default=4, help="steps; the others are single")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train until the budget is spent; state with averaged weights in OUT/vlm.safetensors."""
    state, rank = arguments.out / "vlm.safetensors", dist.get_rank() if dist.is_initialized() else 0
    tokenizer, seed = build_tokenizer(), arguments.seed + 1000 * rank
    generator = torch.Generator().manual_seed(seed)
    sources = {"seed": seed, "generator": generator, "tokenizer": tokenizer}
    singles = single_rows(arguments.pictures, **sources)
    pairs = pair_rows(arguments.pictures // 3, **sources)
    yes_no = torch.tensor(tokenizer.convert_tokens_to_ids(["Yes", "No"]))
    vlm = build_vlm()
    vlm.set_attn_implementation("eager")  # the backward of the fused kernel was half of a step
    start_from_clip(vlm, CLIPModel.from_pretrained(clip_path(), dtype=torch.float32))
    average = {name: value.detach().clone() for name, value in vlm.named_parameters()}
    optimizers = build_optimizers(vlm, arguments.learning_rate)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    budget, step = Budget(steps=arguments.steps, minutes=arguments.minutes), 0
    if state.exists():
        step, budget.seconds_before = _restore(state, vlm, average, optimizers)
    rng, saved, shown = random.Random(f"{seed}/{step}"), budget.seconds(), {}
    while (progress := _first_rank(budget.progress(step))) < 1:
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(progress, warmup=0.02, floor=0.01)
        kind = "pair" if step % arguments.pair_every == arguments.pair_every - 1 else "single"
        rows = singles if kind == "single" else pairs
        chosen = [rng.randrange(len(rows.pictures)) for _ in range(arguments.batch)]
        loss, right = batch_loss(vlm, rows, chosen, yes_no, generator)
        loss.backward()
        _share_gradients(vlm)
        nn.utils.clip_grad_norm_(vlm.parameters(), 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        decay = min(EMA_DECAY, (step + 1) / (step + 20))
        now = [parameter.detach() for parameter in vlm.parameters()]
        torch._foreach_lerp_(list(average.values()), now, 1 - decay)
        shown[kind] = 0.95 * shown.get(kind, 0.5) + 0.05 * right
        if rank == 0 and step % 20 == 0:
            told = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"{log_line(step, loss.item(), budget)} right {told}", flush=True)
        if rank == 0 and budget.seconds() - saved > SAVE_EVERY_SECONDS:
            _save(state, vlm, average, optimizers, step, budget.seconds())
            saved = budget.seconds()
    if rank == 0:
        _save(state, vlm, average, optimizers, step, budget.seconds())


def _restore(
    state: Path, vlm: Llava, average: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """The step and the seconds spent so far; everything else is put in place."""
    groups, step, seconds = load_state(state)
    vlm.load_state_dict(groups["model"], strict=False)  # the tied head is saved once
    average.update(groups["average"])
    for optimizer, name in zip(optimizers, ("muon", "adam"), strict=True):
        restore_optimizer(optimizer, groups[name])
    return step, seconds


def _first_rank(progress: float) -> float:
    """The same number on all ranks: that of the first."""
    if not dist.is_initialized():
        return progress
    value = torch.tensor(progress)
    dist.broadcast(value, 0)
    return float(value)


def _share_gradients(vlm: Llava) -> None:
    """Every rank's gradient becomes the mean of all."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in vlm.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def batch_loss(
    vlm: Llava, rows: Rows, chosen: list[int], yes_no: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Mean cross-entropy of yes/no answers plus that of descriptions, and the share of right
    yes/no; `yes_no` (2,) are the ids of the answers."""
    images = rows.pictures[chosen].float() / 255
    level = NOISE * torch.rand(len(images), 1, 1, 1, 1, generator=generator)
    images = images + level * torch.randn(images.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        logits, target = answers(vlm, images, pack(rows, chosen))
    each = F.cross_entropy(logits, target, reduction="none")
    asked = torch.isin(target, yes_no)
    loss = each[asked].mean()
    if not bool(asked.all()):
        loss = loss + each[~asked].mean()
    return loss, float((logits.argmax(1) == target)[asked].float().mean())


def _save(
    path: Path,
    vlm: Llava,
    average: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    tensors = {
        "model": dict(vlm.named_parameters()),
        "average": average,
        "muon": optimizer_tensors(optimizers[0]),
        "adam": optimizer_tensors(optimizers[1]),
    }
    save_state(path, tensors, step=step, seconds=seconds)


if __name__ == "__main__":
    main()
