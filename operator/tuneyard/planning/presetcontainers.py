"""How a pool's engine container runs Ollama, SGLang, Text Generation Inference and engines of the user's own.

They listen on loopback without a key, as every engine behind a front that demands it.

Of Ollama:
- it serves what it has imported, so that its container imports the base, and again when it begins anew: what is there
  already is not copied twice;
- a shell acts on SIGTERM between two commands: whatever may last runs beside it, and it waits for that;
- it knows the chats of a model by a template in a language of its own, which it finds by comparing the file's with
  those that it knows. Where it finds none, messages go to the model as plain text: that is said in the log, and a file
  `template` beside the base says what to do, as in repositories on Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.planning.engineinit import under_init
from tuneyard.planning.podparts import literal, value
from tuneyard.planning.podvolumes import base_path
from tuneyard.planning.pools import Pool
from tuneyard.planning.resolvedserving import Serving
from tuneyard.planning.settings import Settings

HOME = "/home/engine"
_PORT = str(names.ENGINE_PORT)

_OLLAMA = """
set -e
found=
for file in "$TUNEYARD_BASE_PATH"/*.gguf; do
  [ -e "$file" ] || { echo "there is no .gguf file in $TUNEYARD_BASE_PATH" >&2; exit 1; }
  [ -z "$found" ] || { echo "there are several .gguf files in $TUNEYARD_BASE_PATH: keep one" >&2; exit 1; }
  found=$file
done
ollama serve &
server=$!
trap 'kill -TERM $server; wait $server; exit 0' TERM INT
until ollama list >/dev/null 2>&1; do kill -0 $server; sleep 0.2; done
template="$TUNEYARD_BASE_PATH/template"
printf 'FROM %s\\n' "$found" > "$HOME/Modelfile"
[ ! -e "$template" ] || printf 'TEMPLATE \"\"\"%s\"\"\"\\n' "$(cat "$template")" >> "$HOME/Modelfile"
ollama create "$1" -f "$HOME/Modelfile" &
wait $!
[ "$(ollama show --template "$1")" != '{{ .Prompt }}' ] ||
  echo "Ollama knows no template like this model's: chats are plain text to it. Write one into $template" >&2
wait $server
""".strip()
"""Imports the base under its name; `ollama create` copies the file into the container's home."""


def command(pool: Pool) -> list[str] | None:
    """The container's command; None: the image's own."""
    serving = pool.serving
    if serving.engine == "custom":
        return list(serving.custom.command) if serving.custom and serving.custom.command else None
    return _COMMANDS[serving.engine]


_COMMANDS: Mapping[str, list[str]] = {
    "ollama": ["sh", "-c", _OLLAMA, "ollama"],
    "sglang": under_init(["python3", "-m", "sglang.launch_server"]),
    "tgi": ["text-generation-launcher"],
}


def arguments(pool: Pool, base: BaseModelResource) -> list[str]:
    """The container's arguments."""
    serving = pool.serving
    if serving.engine == "custom":
        return [*((serving.custom.args if serving.custom else None) or ()), *serving.extra_args]
    return [
        *_ARGUMENTS[serving.engine](serving, literal(pool.base_model), literal(base_path(base))),
        *serving.extra_args,
    ]


def _ollama(_: Serving, name: str, _path: str) -> list[str]:
    return [name]


def _sglang(serving: Serving, name: str, path: str) -> list[str]:
    given = ["--model-path", path, "--served-model-name", name, "--host", "127.0.0.1", "--port", _PORT]
    given += ["--tp-size", str(serving.tensor_parallel_size), "--enable-metrics"]
    return given + (["--context-length", str(serving.max_model_len)] if serving.max_model_len else [])


def _tgi(serving: Serving, _: str, path: str) -> list[str]:
    given = ["--model-id", path, "--hostname", "127.0.0.1", "--port", _PORT]
    given += ["--num-shard", str(serving.tensor_parallel_size)]
    return given + (["--max-total-tokens", str(serving.max_model_len)] if serving.max_model_len else [])


_ARGUMENTS: Mapping[str, Callable[[Serving, str, str], list[str]]] = {
    "ollama": _ollama,
    "sglang": _sglang,
    "tgi": _tgi,
}


def environment(pool: Pool, base: BaseModelResource, settings: Settings) -> list[dict[str, Any]]:
    """The pool's variables over the chart's over ours; where the engine listens and the base lies cannot be changed."""
    home = {"HOME": HOME, "XDG_CACHE_HOME": f"{HOME}/.cache", "HF_HOME": f"{HOME}/.cache/huggingface"}
    own = _ollama_environment(pool.serving) if pool.serving.engine == "ollama" else {}
    chosen = {**home, "HF_HUB_OFFLINE": "1", **own, **settings.engine_env, **pool.serving.env}
    fixed = {"TUNEYARD_ENGINE_PORT": _PORT, "TUNEYARD_BASE_PATH": literal(base_path(base))}
    if pool.serving.engine == "ollama":
        fixed["OLLAMA_HOST"] = f"127.0.0.1:{_PORT}"
    # first, so that $(TUNEYARD_ENGINE_PORT) can stand in the others
    return [
        *(value(name, text) for name, text in fixed.items()),
        *(value(name, text) for name, text in sorted(chosen.items()) if name not in fixed),
    ]


def _ollama_environment(serving: Serving) -> dict[str, str]:
    found = {
        "OLLAMA_MODELS": f"{HOME}/models",
        # one after the other otherwise: whoever comes next would wait for the whole of a long answer
        "OLLAMA_NUM_PARALLEL": "4",
        # no model of somebody else's machines under a name of ours
        "OLLAMA_NO_CLOUD": "1",
        # a model that is taken out of memory costs the next request its loading
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NOPRUNE": "1",
    }
    return found | ({"OLLAMA_CONTEXT_LENGTH": str(serving.max_model_len)} if serving.max_model_len else {})
