"""Who a pod is to AWS where no Secret says it: by what its environment tells, and by what AWS itself does.

A refusal is put right in a bucket's policy or a role's, and these know ARNs: so AWS is asked for one, once something
was refused. It tells everybody who he is, whatever his rights.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_SECONDS = 3.0


def told_identity() -> str:
    """By the environment, in the order in which botocore looks for credentials."""
    if key := os.environ.get("AWS_ACCESS_KEY_ID"):
        return f"access key {shown(key)} of the environment"
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return f"the pod's service account ({os.environ.get('AWS_ROLE_ARN', 'IRSA')})"
    if os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return "the pod's service account (EKS Pod Identity)"
    return "the AWS identity of this machine"


def asked_identity(session: Any, endpoint: str | None) -> str:
    """The same with the ARN, where AWS tells it; a server of one's own (`endpoint`) has no such ARNs."""
    told = told_identity()
    if endpoint is not None or "arn:" in told:
        return told
    try:
        config = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
        region = session.region_name or "us-east-1"
        with closing(session.client("sts", config=config, region_name=region)) as client:
            return f"{told}, {client.get_caller_identity()['Arn']},"
    except (BotoCoreError, ClientError, KeyError, ValueError):
        return told  # without a way to AWS's own service; the refusal is what matters


def shown(key_id: str) -> str:
    """An access key's id, recognisable but not whole."""
    return f"{key_id[:4]}...{key_id[-4:]}" if len(key_id) > 10 else f"{key_id[:2]}..."
