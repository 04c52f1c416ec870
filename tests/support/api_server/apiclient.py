"""Writes to a test's API server as kubectl does."""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from support.api_server.apiserver import ApiServer

CREATED, BAD_REQUEST, UNPROCESSABLE = 201, 400, 422
JOBS = "apis/pipelinejob.io/v1alpha1/namespaces/default/pipelinejobs"


class Client:
    """Writes to the API server as kubectl does: unknown fields are errors, and nothing is stored on a dry run."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(server.ca))

    def send(self, method: str, path: str, body: Any = None, *, dry_run: bool = False) -> tuple[int, dict[str, Any]]:
        query = "?fieldValidation=Strict&fieldManager=test" + ("&dryRun=All" if dry_run else "")
        request = urllib.request.Request(f"{self._server.url}/{path}{query}", method=method)
        request.add_header("Authorization", f"Bearer {self._server.token}")
        request.add_header("Content-Type", "application/json")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, context=self._tls, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def create(self, body: Any, *, dry_run: bool = True) -> tuple[int, dict[str, Any]]:
        return self.send("POST", JOBS, body, dry_run=dry_run)
