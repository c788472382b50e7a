"""Checks of a model folder before anything in it is used: data only, and whole.

A folder in diffusers format can name Python classes and hold Python files and pickles. We read
safetensors and JSON, and refuse the rest instead of ignoring it.
"""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import diffusers.pipelines
from safetensors import SafetensorError, safe_open

from flowalign.errors import CheckpointError, ConfigError, SecurityError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def check_folder(folder: Path) -> dict[str, Any]:
    """Check the folder and return its model_index.json.

    Raises:
        ConfigError: not a pipeline in diffusers format.
        SecurityError: it holds code, names classes of other libraries, or has pickled weights.
        CheckpointError: a file is damaged.
    """
    index = read_index(folder)
    check_no_code(folder)
    check_classes(folder, index)
    check_weights(folder)
    return index


def read_index(folder: Path) -> dict[str, Any]:
    """The table of components."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise ConfigError(
            "MODEL-FORMAT",
            str(folder),
            "there is no model_index.json, so this is no pipeline in diffusers format",
            "name the folder that pipe.save_pretrained wrote",
        )
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            "MODEL-DAMAGED", str(file), f"not readable as JSON ({error})", "copy it again"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError("MODEL-DAMAGED", str(file), "not a JSON object", "copy it again")
    return value


def check_no_code(folder: Path) -> None:
    """Refuse Python files and configs that ask for them."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".py", ".pyc", ".so", ".pyd"):
            refuse_code(file, "the folder holds code")
        if file.suffix == ".json" and file.stat().st_size < 1_000_000:
            text = file.read_text(encoding="utf-8", errors="replace")
            if '"auto_map"' in text or '"custom_pipelines"' in text:
                refuse_code(file, "the config asks for code from the folder")


def refuse_code(file: Path, what: str) -> None:
    """Raise the error of a folder with code."""
    raise SecurityError(
        "MODEL-CODE",
        str(file),
        f"{what}, and flowalign never runs code from a model",
        "remove it, or load the pipeline yourself and pass the object to flowalign.finetune",
    )


def check_classes(folder: Path, index: dict[str, Any]) -> None:
    """Refuse components from anywhere but diffusers and transformers."""
    file = folder / "model_index.json"
    name = index.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        refuse_code(file, f"the pipeline's class is {name!r}")
    known = {module.name for module in pkgutil.iter_modules(diffusers.pipelines.__path__)}
    known |= {"diffusers", "transformers", None}
    for component, value in index.items():
        if not isinstance(value, list) or component.startswith("_"):
            continue
        if len(value) != 2 or value[0] not in known:
            refuse_code(file, f"component {component} comes from {value[0] if value else value!r}")


def check_weights(folder: Path) -> None:
    """Refuse folders that hold pickled weights only, and damaged safetensors."""
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        files = [path for path in place.iterdir() if path.is_file()]
        pickles = [path for path in files if path.suffix in PICKLES]
        tensors = [path for path in files if path.suffix == ".safetensors"]
        if pickles and not tensors:
            raise SecurityError(
                "MODEL-PICKLE",
                str(pickles[0]),
                "the weights are pickled, which can run code when they are read",
                "convert them: load the pipeline where you trust it, and save_pretrained it",
            )
        for file in tensors:
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    "MODEL-DAMAGED", str(file), f"not readable ({error})", "copy it again"
                ) from None
