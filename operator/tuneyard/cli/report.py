"""`tuneyard report NAME`: what gates and days have found of a model deployment's revisions. Reads only.

Rule: it shows what is kept in the ConfigMap `<NAME>-reports`, which outlives status and object, feedback by day from
`<NAME>-evidence`, and where gates stand that are under way now. So it needs no right but to read
ModelDeployments and ConfigMaps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api import names
from tuneyard.api.drift import KeptFeedback
from tuneyard.api.gatereports import GateReports
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.cli.errors import UserError
from tuneyard.cli.output import answer, write_page
from tuneyard.cli.reporthtml import page
from tuneyard.cli.reportrender import render_report
from tuneyard.cli.reportview import report_view
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import Cluster, explained, open_cluster, read_deployment
from tuneyard.planning.evidencerecord import evidence_of
from tuneyard.planning.gateobservations import REPORTS_KEY
from tuneyard.planning.observations import child_observation
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import ApiError, Object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard report`."""
    parser.add_argument("name", metavar="NAME", help="a ModelDeployment")
    parser.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    parser.add_argument("--revision", metavar="NAME", help="of this revision only")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots, which needs no other file")
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the reports; raises UserError where there is no such ModelDeployment, or nothing can be written."""
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = args.namespace or cluster.namespace
    deployment = read_deployment(cluster, namespace, args.name)
    kept = _kept(cluster, namespace, args.name)
    view = report_view(deployment, kept, args.revision, _feedback(cluster, deployment))
    if args.html is not None:
        write_page(args.html, page(view))
    else:
        answer(view, render_report, args.output)
    return 0


def _kept(cluster: Cluster, namespace: str, name: str) -> GateReports | None:
    """What is kept; None where there is nothing, or somebody else's ConfigMap of the name."""
    found = _config_map(cluster, namespace, names.gate_reports(name), names.GATE_REPORTS)
    if found is None:
        return None
    try:
        return GateReports.model_validate_json((found.get("data") or {}).get(REPORTS_KEY, ""))
    except ValidationError as error:
        raise UserError(
            f"ConfigMap {names.gate_reports(name)} cannot be read ({error.error_count()} errors): a newer version has "
            "written it, or somebody has changed it"
        ) from error


def _feedback(cluster: Cluster, deployment: ModelDeploymentResource) -> list[KeptFeedback]:
    """Feedback by day, where it is asked for; one that cannot be read says nothing: the operator begins anew."""
    rollout, meta = deployment.spec.rollout, deployment.metadata
    if rollout is None or rollout.drift is None or rollout.drift.feedback is None:
        return []
    found = _config_map(cluster, meta.namespace, names.rollout_evidence(meta.name), names.ROLLOUT_EVIDENCE)
    record = evidence_of(child_observation(found), deployment) if found is not None else None
    return record.feedback if record is not None else []


def _config_map(cluster: Cluster, namespace: str, name: str, component: str) -> Object | None:
    """One of the operator's; None where there is none, or somebody else's."""
    try:
        found = objects.get(cluster.api, "v1", "ConfigMap", namespace, name)
    except ApiError as error:
        raise explained(error, "configmaps", cluster.api.host) from error
    labels = (found or {}).get("metadata", {}).get("labels") or {}
    return found if labels.get(names.LABEL_COMPONENT) == component else None
