"""AWS's own credential chain and request signatures. Imports botocore, so it is imported only where those are used."""

from __future__ import annotations

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.session import Session

from llmproxy.request import Headers

__all__ = ["CredentialChain", "ReadOnlyCredentials", "fixed_credentials", "signature_headers"]


class CredentialChain:
    """The usual places in their usual order: variables, files, SSO, web identity, container and instance metadata.

    Args:
        profile: A profile of the AWS files; None stands for the usual one.
    """

    def __init__(self, profile: str | None, region: str) -> None:
        self._session = Session(profile=profile)
        # Exchanging a token for credentials is a request to a region of its own.
        self._session.set_config_variable("region", region)

    def current(self) -> ReadOnlyCredentials | None:
        """What is valid now, renewed when it expires within 15 minutes; None when there is none.

        Blocks on files and other services. Raises whatever the place it looks at raises.
        """
        credentials = self._session.get_credentials()
        return credentials.get_frozen_credentials() if credentials else None


def fixed_credentials(access_key_id: str, secret_access_key: str, session_token: str | None) -> ReadOnlyCredentials:
    """Credentials that never change."""
    return Credentials(access_key_id, secret_access_key, session_token).get_frozen_credentials()


def signature_headers(
    url: str, headers: Headers, body: bytes, *, credentials: ReadOnlyCredentials, region: str, service: str = "bedrock"
) -> Headers:
    """The headers that sign a POST request, among others `authorization`; `headers` are signed along."""
    request = AWSRequest("POST", url, dict(headers), body)
    SigV4Auth(credentials, service, region).add_auth(request)
    given = {name.lower() for name, _ in headers}
    return tuple((name.lower(), value) for name, value in request.headers.items() if name.lower() not in given)
