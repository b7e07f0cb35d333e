"""The model card of an exported model: what it is, of what it was made, how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HIDDEN = ("config", "format", "kind")
_LOAD = {
    "open_clip": 'import open_clip\n\nmodel = open_clip.create_model("{arch}", pretrained="{file}")',
    "hf": 'from transformers import CLIPModel, CLIPProcessor\n\nmodel = CLIPModel.from_pretrained("{file}")\n'
    'processor = CLIPProcessor.from_pretrained("{file}")',
    "safetensors": "import open_clip, safetensors.torch\n\n"
    'visual = open_clip.create_model("{arch}", load_weights=False).visual\n'
    'visual.load_state_dict(safetensors.torch.load_file("{file}"))',
}


def model_card(out: Path, about: Mapping[str, Any], command: str, form: str) -> str:
    """Markdown; `about`: the metadata of the tower's file and what its export adds, all of it shown."""
    rows = [
        (key, _text(value)) for key, value in about.items() if key not in _HIDDEN and value not in (None, "")
    ]
    table = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in rows)
    merged = "A merged model" if about.get("method") else "An expert"
    load = _LOAD[form].format(arch=about.get("arch", ""), file=out.name)
    return (
        f"# {out.stem}\n\n{merged}, exported by NeuLig-Ray.\n\n"
        f"| | |\n|---|---|\n{table}\n\n```python\n{load}\n```\n\nWritten by\n\n```bash\n{command}\n```\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{key}={_text(item)}" for key, item in value.items()]
    text = ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
