"""Several models made one, by mergekit.

Rules:
- the configuration names models, never paths; adapters are added to their bases first, in float32 (merge.py);
- a seed is always given, because some methods (DARE) draw which weights they drop: the same inputs give the same bytes;
- nothing is fetched, no code of a model's repository is run, and models of different architectures are not mixed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tuneyard.build.tools.files import refuse_code, refuse_quantized
from tuneyard.build.tools.judging import first_line
from tuneyard.build.tools.merge import merge
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.versions import versions_of
from tuneyard.planning.mergekitnames import ConfigError, checked, named_models, with_folders


def run(settings: Mapping[str, Any], output: Path, report: Report) -> dict[str, Any]:
    """`settings`: config (YAML text), models (name to {base, adapter}, folders), seed."""
    from mergekit.config import MergeConfiguration  # noqa: PLC0415
    from mergekit.merge import run_merge  # noqa: PLC0415
    from mergekit.options import MergeOptions  # noqa: PLC0415

    seed, scratch = int(settings["seed"]), output.with_name(f"{output.name}.adapters")
    try:
        config = yaml.safe_load(settings["config"])
        # before adapters are merged: a configuration that is wrong is told at once
        checked(named_models(config), settings["models"])
        checks: dict[str, str] = {"seed": str(seed)}
        folders = {
            name: str(_whole(name, model, scratch, report, checks)) for name, model in settings["models"].items()
        }
        wanted = MergeConfiguration.model_validate(with_folders(config, folders))
        report.doing(f"mergekit: {wanted.merge_method}")
        options = MergeOptions(random_seed=seed, write_model_card=False, quiet=True, trust_remote_code=False)
        run_merge(wanted, str(output), options)
    except (yaml.YAMLError, ConfigError) as error:
        raise ToolError(first_line(error) if isinstance(error, ConfigError) else _bad_yaml(error)) from error
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise ToolError(f"mergekit refuses the configuration: {first_line(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not any(output.glob("tokenizer*")):
        raise ToolError("the merged model has no tokenizer: give mergekit.config a tokenizer_source")
    checks["method"] = wanted.merge_method
    return {"tools": versions_of("mergekit", "peft", "torch", "transformers"), "seed": seed, "checks": checks}


def _whole(name: str, model: Mapping[str, Any], scratch: Path, report: Report, checks: dict[str, str]) -> Path:
    """The folder of a model without adapter: its base's, or one made for the occasion."""
    base = Path(model["base"])
    refuse_code(base)
    refuse_quantized(base, "merge")
    if not model.get("adapter"):
        return base
    target = scratch / name
    target.mkdir(parents=True)
    found = merge(base, Path(model["adapter"]), target, "float32", report)
    checks[f"{name}AsBaseAndAdapter"] = found["textsAsBaseAndAdapter"]
    return target


def _bad_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    return f"mergekit.config is no YAML{where}: {getattr(error, 'problem', None) or first_line(error)}"
