"""The name by which a run that goes on elsewhere finds a processor that a program has given as an object."""

import os
import sys
from pathlib import Path
from typing import Any

from workers.processing import ProcessorSpec


def lasting_name(target: Any) -> dict[str, str]:
    """As settings: `processor`, and `app_dir` to import it from. Empty: it has no name by which others can import it.

    What a script defines belongs to the module that the script's file is.
    """
    module_name, _, attribute = ProcessorSpec(target).name.partition(":")
    module = sys.modules.get(module_name)
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    file = getattr(module, "__file__", None)
    if found is not target or not file:
        return {}
    place = Path(os.path.abspath(file))
    if module_name == "__main__":
        spec = getattr(module, "__spec__", None)
        module_name = spec.name if spec is not None else place.stem
    names = [*module_name.split("."), *(["__init__"] if hasattr(module, "__path__") else [])]
    folder, *inside = Path(*place.parts[: -len(names)]), *place.parts[-len(names) : -1], place.name.partition(".")[0]
    is_importable = (
        inside == names and all(map(str.isidentifier, names)) and folder.is_dir()
    )  # else it is of a zip file, say
    return {"processor": f"{module_name}:{attribute}", "app_dir": str(folder)} if is_importable else {}
