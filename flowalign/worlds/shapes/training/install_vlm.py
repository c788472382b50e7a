"""Put the trained vision-language model into the package and say how often it is right:
`python -m flowalign.worlds.shapes.training.install_vlm --out DIR`.

Reads DIR/vlm.safetensors and writes models/vlm as a bfloat16 checkpoint with its processor.
`--evaluate` only measures what is installed, through the rewards' own code.
"""

# transformers declares tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import argparse
import logging
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaProcessor

from flowalign.config.rewards_vlm import COMPARISON, VQAScoreReward
from flowalign.vlm.asking import Turn, picture
from flowalign.vlm.load import load_vlm
from flowalign.worlds.shapes.grammar import caption, parse, prompts
from flowalign.worlds.shapes.models import vlm_path
from flowalign.worlds.shapes.questions import KINDS, ask, view, wrong
from flowalign.worlds.shapes.render import place, render
from flowalign.worlds.shapes.scene import CATEGORIES
from flowalign.worlds.shapes.training.checkpoint import load_state
from flowalign.worlds.shapes.training.install import load_as_float32, replace_folder
from flowalign.worlds.shapes.training.vlm import build_vlm
from flowalign.worlds.shapes.training.vlm_data import facts_of, quoted, worded
from flowalign.worlds.shapes.training.vlm_tokenizer import CHAT, build_tokenizer


def install(state: Path, target: Path) -> None:
    """Write the averaged weights and the processor."""
    vlm = build_vlm()
    vlm.load_state_dict(load_state(state)[0]["average"], strict=False)  # the tied head is absent
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=build_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    vlm.to(torch.bfloat16).save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    load_as_float32(unfinished / "config.json")
    replace_folder(unfinished, target)


def accuracy(per_category: int, split: str = "heldout") -> Mapping[str, tuple[float, int]]:
    """Share of right answers and their number: by kind of question, of `prompt` also by category
    of the prompt, and of comparisons in both orders."""
    config = VQAScoreReward(name="vqascore", batch_size=64)
    vlm = load_vlm(config, "vqascore", torch.device("cpu"))
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    asked, wanted, names = [], [], []
    for name in CATEGORIES:
        for text in prompts(split, name, per_category):
            scene = parse(text)
            layout = place(scene, generator)
            facts, seen = facts_of(scene, layout), picture(render([layout])[0])
            for answer in (True, False):
                told = text if answer else caption(wrong(scene, rng))
                asked.append((Turn(parts=(seen, worded("prompt", told))),))
                wanted.append(answer)
                names.append(f"prompt, {name}")
                for kind in KINDS[1:]:
                    if (own := ask(facts, kind, answer, rng)) is not None:
                        asked.append((Turn(parts=(seen, worded(kind, own))),))
                        wanted.append(answer)
                        names.append(kind)
            told = view(facts, rng)
            other = picture(render([place(wrong(told, rng), generator)])[0])
            for answer, pair in ((True, (seen, other)), (False, (other, seen))):
                asked.append((Turn(parts=(*pair, quoted(COMPARISON, caption(told)))),))
                wanted.append(answer)
                names.append("comparison")
    answers = vlm.answers(asked)
    right = (answers.yes > answers.no) == torch.tensor(wanted)
    found = {}
    for name in dict.fromkeys(names):
        own = right[torch.tensor([other == name for other in names])]
        found[name] = (float(own.float().mean()), len(own))
    gap = (answers.yes - answers.no)[torch.tensor([name == "comparison" for name in names])]
    found["comparison, both orders"] = (
        float((gap[0::2] > gap[1::2]).float().mean()),
        len(gap) // 2,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the training folder")
    parser.add_argument("--vlm", type=Path, default=vlm_path(), help="where to put the model")
    parser.add_argument("--evaluate", type=int, metavar="N", help="prompts of each category")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if arguments.out is not None:
        install(arguments.out / "vlm.safetensors", arguments.vlm)
        size = sum(path.stat().st_size for path in arguments.vlm.rglob("*") if path.is_file())
        print(f"installed {size / 1e6:.2f} MB")
    if arguments.evaluate is not None:
        for name, (share, number) in accuracy(arguments.evaluate).items():
            print(f"{name}: {share:.3f} of {number}")


if __name__ == "__main__":
    main()
