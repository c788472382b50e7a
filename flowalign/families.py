"""The pipeline classes of diffusers that were tried, and how each of them works. Torch-free.

Every line is checked by a test on a tiny random pipeline of the class: the proof of
`flowalign.pipelines.proof`, the gradient of prediction and decoding, and a LoRA that is written,
read and gives the same prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Support = Literal["traced", "special", "limited"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One pipeline class.

    support: `traced` works as it is, `special` by a short file of ours, `limited` with the
    restriction that `note` names. lora: `diffusers` where plain `pipe.load_lora_weights` reads
    our files, `flowalign` where the class has no such method and `import_lora` does.
    """

    name: str
    title: str
    modality: Literal["image", "video", "audio"]
    support: Support = "traced"
    lora: Literal["diffusers", "flowalign"] = "diffusers"
    fps: float | None = None  # at which the released model was trained, for videos
    note: str = ""

    @property
    def status(self) -> str:
        """One line for `flowalign list pipelines`."""
        how = {
            "traced": "works as it is",
            "special": "works by a special file",
            "limited": "works in part",
        }[self.support]
        lora = "" if self.lora == "diffusers" else "; LoRA files are read by flowalign only"
        note = f"; {self.note}" if self.note else ""
        return f"{self.modality}, {self.title}: {how}{lora}{note}"


FAMILIES: tuple[Family, ...] = (
    Family(name="StableDiffusionPipeline", title="Stable Diffusion 1.5, 2.1", modality="image"),
    Family(name="StableDiffusionXLPipeline", title="Stable Diffusion XL", modality="image"),
    Family(name="StableDiffusion3Pipeline", title="Stable Diffusion 3, 3.5", modality="image"),
    Family(
        name="FluxPipeline",
        title="Flux 1",
        modality="image",
        note="guidance_scale is the embedded guidance of dev",
    ),
    Family(
        name="Flux2KleinPipeline",
        title="Flux 2 Klein",
        modality="image",
        support="special",
        note="pipelines/flux2.py unpacks the latents of the call",
    ),
    Family(
        name="QwenImagePipeline",
        title="Qwen-Image",
        modality="image",
        note="guidance_scale is true_cfg_scale",
    ),
    Family(name="SanaPipeline", title="Sana", modality="image"),
    Family(name="Lumina2Pipeline", title="Lumina 2", modality="image"),
    Family(name="ZImagePipeline", title="Z-Image", modality="image"),
    Family(name="AuraFlowPipeline", title="AuraFlow", modality="image"),
    Family(name="PixArtSigmaPipeline", title="PixArt-Sigma", modality="image", lora="flowalign"),
    Family(
        name="WanPipeline",
        title="Wan 2.1, 2.2",
        modality="video",
        fps=16.0,
        note="both experts of 2.2 are trained, and written as two LoRA files",
    ),
    Family(name="LTXPipeline", title="LTX-Video", modality="video", fps=25.0),
    Family(
        name="CogVideoXPipeline",
        title="CogVideoX",
        modality="video",
        fps=8.0,
        note="num_frames 8 n + 1",
    ),
    Family(name="HunyuanVideoPipeline", title="HunyuanVideo", modality="video", fps=24.0),
    Family(name="MochiPipeline", title="Mochi 1", modality="video", fps=30.0),
    Family(
        name="StableAudioPipeline",
        title="Stable Audio Open",
        modality="audio",
        lora="flowalign",
        note="its default scheduler needs the package torchsde",
    ),
    Family(name="AudioLDM2Pipeline", title="AudioLDM 2", modality="audio", lora="flowalign"),
    Family(
        name="AceStepPipeline",
        title="ACE-Step 1.5",
        modality="audio",
        support="limited",
        note="guidance_scale 1 only, its adaptive guidance remembers earlier steps; prompts of "
        "different length are predicted apart, because its text has no mask",
    ),
)

VIDEO_FPS = {family.name: family.fps for family in FAMILIES if family.fps is not None}
