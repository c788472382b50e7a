"""Every tiny pipeline with the config under which it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from flowalign.config.schema import ModelConfig
from tests.zoo import audio, image, video


@dataclass(frozen=True, kw_only=True, slots=True)
class Specimen:
    """A tiny pipeline: how it is built and called."""

    build: Callable[[], DiffusionPipeline]
    guidance_scale: float = 2.5
    resolution: int | None = None
    num_frames: int | None = None
    call: dict[str, Any] = field(default_factory=dict)

    def config(self, guidance_scale: float | None = None) -> ModelConfig:
        """The model's section of a run on this pipeline."""
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        return ModelConfig(
            name="tiny",
            guidance_scale=scale,
            resolution=self.resolution,
            num_frames=self.num_frames,
            call=self.call,
        )


SHORT = {"max_sequence_length": 16}

ZOO = {
    "sd15": Specimen(build=image.sd15),
    "sdxl": Specimen(build=image.sdxl),
    "sd3": Specimen(build=image.sd3, call={"max_sequence_length": 0}),
    "flux": Specimen(build=image.flux, resolution=16, call=SHORT),
    "flux2_klein": Specimen(build=image.flux2_klein, resolution=16, call=SHORT),
    "qwen_image": Specimen(build=image.qwen_image, resolution=16),
    "sana": Specimen(build=image.sana, resolution=32, call=SHORT),
    "lumina2": Specimen(build=image.lumina2, resolution=32, call=SHORT),
    "z_image": Specimen(build=image.z_image, resolution=16, call=SHORT),
    "aura_flow": Specimen(build=image.aura_flow, resolution=16, call=SHORT),
    "pixart_sigma": Specimen(build=image.pixart_sigma, resolution=16, call=SHORT),
    "wan21": Specimen(build=video.wan21, resolution=16, num_frames=5, call=SHORT),
    "wan22": Specimen(build=video.wan22, resolution=16, num_frames=5, call=SHORT),
    "ltx": Specimen(build=video.ltx, resolution=32, num_frames=5, call=SHORT),
    "cogvideox": Specimen(build=video.cogvideox, resolution=32, num_frames=9, call=SHORT),
    "hunyuan_video": Specimen(
        build=video.hunyuan_video, guidance_scale=6.0, resolution=32, num_frames=5
    ),
    "mochi": Specimen(build=video.mochi, resolution=16, num_frames=7, call=SHORT),
    "stable_audio": Specimen(build=audio.stable_audio),
    "audioldm2": Specimen(build=audio.audioldm2, call={"audio_length_in_s": 0.08}),
    "ace_step": Specimen(build=audio.ace_step, guidance_scale=1.0, call={"audio_duration": 2.0}),
}
