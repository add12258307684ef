"""The model card of an expert: a README with the metadata that PEFT and the hub read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

import yaml

from aios.core.types import Expert


def render_model_card(expert: Expert, provenance: Mapping[str, object]) -> str:
    """The card as Markdown with a YAML head.

    Args:
        expert: The expert as registered.
        provenance: What made it: recipe, strategy, seed, digests, curve.
    """
    head = yaml.safe_dump(
        {
            "base_model": expert.model_architecture,
            "library_name": "peft",
            "tags": ["lora", "aios", "self-edits"],
        },
        sort_keys=False,
    )
    metrics = expert.performance_metrics
    lines = [f"# {expert.name}", "", expert.description or "An expert trained by AI-OS SEAL.", ""]
    lines += [
        "| | |",
        "|---|---|",
        f"| base model | {expert.model_architecture} |",
        f"| base digest | `{provenance.get('base_digest', '')}` |",
        f"| trained | {expert.last_trained} |",
        f"| passages | {len(_listed(provenance.get('passages')))} |",
        f"| self-edits | {provenance.get('edits', 0)} ({provenance.get('strategy') or 'none'}) |",
        *_generator_row(provenance.get("generator")),
        *_restem_row(provenance.get("restem")),
        f"| recipe | {provenance.get('recipe', '')} |",
        f"| seed | {provenance.get('seed', '')} |",
        f"| validation on | {provenance.get('validation', '')} |",
    ]
    for key, label in (
        ("validation_loss_before", "validation loss before"),
        ("validation_loss", "validation loss after"),
    ):
        if key in metrics:
            lines.append(f"| {label} | {metrics[key]:.3f} |")
    lines += ["", "Load it with PEFT on the base model named above; `expert.json` has the rest."]
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"


def _generator_row(generator: object) -> list[str]:
    """The generator that wrote the self-edits, where one did."""
    if not isinstance(generator, Mapping):
        return []
    digest = str(generator.get("adapter_digest", ""))[:12]
    return [f"| self-edits written by | generator `{digest}`, round {generator.get('round')} |"]


def _restem_row(restem: object) -> list[str]:
    """The ReST-EM run that was made for this expert, if there was one."""
    if not isinstance(restem, Mapping):
        return []
    passages, run = restem.get("passages"), PurePath(str(restem.get("run", ""))).name
    return [f"| generator optimised in | `{run}`, on {passages} passages |"]


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []
