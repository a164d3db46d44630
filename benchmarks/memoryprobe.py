"""What vLLM really takes. Run by the engine's own Python with its own arguments; the last line of stdout tells.

Looked at are the tensors in each worker: those of the model, those that are reserved for adapters, and the KV cache.

python benchmarks/memoryprobe.py ARGUMENTS OF VLLM
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any


def _bytes(tensors: Iterable[Any]) -> dict[int, int]:
    """Each piece of memory once, however many tensors lie in it."""
    stores = [tensor.untyped_storage() for tensor in tensors]
    return {store.data_ptr(): store.nbytes() for store in stores if store.nbytes()}


def look(worker: Any) -> dict[str, int]:
    """Bytes in one worker, and how many tokens its KV cache holds."""
    runner = getattr(worker, "worker", worker).model_runner
    model = runner.model
    reserved = []
    for module in model.modules():
        for name in ("lora_a_stacked", "lora_b_stacked"):
            found = getattr(module, name, ())
            reserved += list(found) if isinstance(found, (tuple, list)) else [found]
    packed = [name for name, weight in model.named_parameters() if name.endswith(".weight") and not weight.numel()]
    if packed:
        raise RuntimeError(f"{len(packed)} weights are packed where no tensor shows them, {packed[0]} first")
    adapters = _bytes(reserved)
    weights = _bytes([*model.parameters(), *model.buffers()])
    cache = runner.kv_cache_config
    block = cache.kv_cache_groups[0].kv_cache_spec.block_size
    return {
        "weights": sum(size for place, size in weights.items() if place not in adapters),
        "adapters": sum(adapters.values()),
        "tokens": cache.num_blocks * block,
    }


def main(arguments: list[str]) -> None:
    """Start the engine, look, and end."""
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415 -- a worker that unpickles `look` need not import it
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(arguments)
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(parsed))
    print(json.dumps(engine.collective_rpc(look)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
