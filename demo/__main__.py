"""`make demo`: bring everything up, tell the story, leave it running, and say how to go on."""

from __future__ import annotations

import json
import sys
import time

from rich.console import Console
from rich.table import Table

from cluster.errors import ClusterError
from demo.kubectl import KubectlError
from demo.progress import say
from demo.story import MODEL, Clients, Report, Story
from demo.system import MODELS_NAMESPACE, ROOT, System, bring_up

REPORT = ROOT / "build" / "demo" / "report.json"


def _table(report: Report) -> None:
    console = Console(file=sys.stdout)
    told = Table(title="What happened", show_lines=False)
    told.add_column("step", no_wrap=True)
    told.add_column("result")
    for step in report.steps:
        told.add_row(step["step"], step["result"])
    figures = Table(title="Figures")
    figures.add_column("figure", no_wrap=True)
    figures.add_column("measured", justify="right")
    for name, value in report.figures.items():
        figures.add_row(name, f"{value:g}")
    console.print(told, figures)


def _how_to_go_on(system: System) -> None:
    say(f"""
It is still running. Talk to it:

  curl -s {system.gateway}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "How do I reset my password?"}}]}}'

  .venv/bin/python -c 'from openai import OpenAI; print(OpenAI(base_url="{system.gateway}/v1", api_key="x").chat.\\
completions.create(model="{MODEL}", messages=[{{"role": "user", "content": "Where is my invoice?"}}])\\
.choices[0].message.content)'

  export KUBECONFIG={system.provider.kubeconfig()} PATH={system.kubectl.binary.parent}:$PWD/.venv/bin:$PATH
  kubectl -n {MODELS_NAMESPACE} get mdep,lora,bmodel
  kubectl tuneyard status -n {MODELS_NAMESPACE}
  kubectl -n {MODELS_NAMESPACE} edit mdep {MODEL}        # change the weights

  make down     # remove it again
""")


def main() -> int:
    """Run the demo; 0 when every request of it was answered."""
    started = time.monotonic()
    report = Report()
    try:
        system = bring_up()
        report.figures["cluster_ready_seconds"] = round(time.monotonic() - started, 1)
        clients = Clients(system.gateway)
        Story(system, clients, report).tell()
    except (ClusterError, KubectlError, TimeoutError) as error:
        say(f"\nThe demo stopped: {error}\nRun it again to go on where it stopped, or `make down` to start over.")
        return 1
    report.figures["requests"] = clients.requests
    report.figures["failed_requests"] = len(clients.failed)
    report.figures["total_seconds"] = round(time.monotonic() - started, 1)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"steps": report.steps, "figures": report.figures}, indent=2) + "\n")
    say()
    _table(report)
    for failure in clients.failed[:5]:
        say(f"failed: {failure}")
    _how_to_go_on(system)
    return 1 if clients.failed else 0


if __name__ == "__main__":
    sys.exit(main())
