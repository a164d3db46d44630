"""Small objects read from under one prefix, on any server that speaks S3: records that gateways have written there.

Who asks, and how the server is reached: s3access.py. Errors are told in words, without a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from urllib3.exceptions import HTTPError

from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.s3access import S3Access, why


def objects_under(source: S3Source, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Key below the prefix, and bytes, of every object whose key is `wanted`; raises ArtifactError.

    Keys and secrets come from where boto3 looks for them.
    """
    at = S3Access(source, None)
    try:
        pages = at.client().get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.prefix)
        for page in pages:
            for entry in page.get("Contents", []):
                key = entry["Key"][len(at.prefix) :]
                if wanted(key):
                    yield key, at.client().get_object(Bucket=at.bucket, Key=entry["Key"])["Body"].read()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "")) or "refused"
        text = f"{at.identity} may not read {at.what}, or it is not there ({code})"
        raise ArtifactError(Reason.ACCESS_DENIED, text) from None
    except NoCredentialsError:
        text = (
            f"there are no credentials for {at.what}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
        raise ArtifactError(Reason.CREDENTIALS_MISSING, text) from None
    except (BotoCoreError, HTTPError, OSError, ValueError) as error:
        text = f"{at.what} cannot be read at {at.where}: {why(error)}"
        raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None
    finally:
        at.close()
