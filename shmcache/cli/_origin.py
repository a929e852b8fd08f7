"""What ``shmcache reflect`` follows: a resource of an API server, a folder, or another source.

May import: ``_backoff``, ``_errors``, ``_ports``, ``_types``, ``cli._failure``, ``cli._log``,
``sources``; the official client when it connects.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmcache import sources
from shmcache._backoff import LONGEST_PAUSE, Backoff
from shmcache._errors import ApiError, ShmCacheError
from shmcache._ports import ListerWatcher
from shmcache._types import ListOptions
from shmcache.cli._failure import Failure
from shmcache.cli._log import Log

__all__ = ["Origin", "reach"]

_VERSION = re.compile(r"v[0-9]+((alpha|beta)[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Origin:
    """A source, and what it is of: one text that is different for different content."""

    source: ListerWatcher
    text: str


def reach(options: argparse.Namespace, lines: Log) -> Origin:
    """Return the source that ``options`` name, once it has answered.

    Waits while it is only down or busy, and says so. Raises :class:`Failure`, or the source's own
    error, for what no waiting mends, and ends with the usage for what cannot be meant.
    """
    backoff = Backoff()
    while True:
        try:
            origin = _open(options)
            origin.source.list(ListOptions(limit=1))
            return origin
        except Exception as error:
            if not _may_pass(error):
                raise _explained(error, options) from error
            asked = min(getattr(error, "retry_after", None) or 0.0, LONGEST_PAUSE)
            delay = max(backoff.next_delay(), asked)
            text = f"cannot begin: {error}; next try in {delay:.1f} s"
            lines.say("waiting", text, logging.WARNING, seconds=round(delay, 3))
        time.sleep(delay)


def _open(options: argparse.Namespace) -> Origin:
    try:
        if options.dir is not None:
            return _directory(options)
        if options.source is not None:
            return _named(options)
        return _kubernetes(options)
    except ImportError as error:  # it says what to install
        options.refuse(str(error))
        raise


def _kubernetes(options: argparse.Namespace) -> Origin:
    from shmcache.sources.kubernetes import list_watch_from_client

    client = _client(options)
    resource = _full_name(client, options.resource)
    try:
        source = list_watch_from_client(
            client, resource, options.namespace, options.field_selector, options.selector
        )
    except ValueError as error:
        options.refuse(str(error))
    chosen = [
        f"{what} {value}"
        for what, value in (
            ("namespace", options.namespace),
            ("labels", options.selector),
            ("fields", options.field_selector),
        )
        if value
    ]
    text = f"{resource} of {client.configuration.host}"
    return Origin(source, f"{text} ({', '.join(chosen)})" if chosen else text)


def _client(options: argparse.Namespace) -> Any:
    try:
        # From these modules, because the package's facade may import every model.
        from kubernetes.client.api_client import ApiClient
        from kubernetes.client.configuration import Configuration
        from kubernetes.config import load_incluster_config, load_kube_config
    except ImportError as error:
        raise ImportError(
            f"an API server needs {error.name}: pip install 'shmcache[kubernetes]'"
        ) from error

    configuration = Configuration()
    named = options.kubeconfig or os.environ.get("KUBECONFIG")
    load: Any
    if named or options.context or Path("~/.kube/config").expanduser().exists():
        where, load = f"kubeconfig {named or '~/.kube/config'}", load_kube_config
        arguments = {"config_file": named, "context": options.context}
    else:
        where = (
            "there is no kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config), and this is no pod "
            "of a cluster"
        )
        load, arguments = load_incluster_config, {}
    try:
        load(client_configuration=configuration, **arguments)
    except Exception as error:  # whatever a file that is no kubeconfig makes it raise
        raise Failure(f"{where}: {error}") from error
    return ApiClient(configuration)


def _full_name(client: Any, resource: str) -> str:
    """Return what kubectl would write as ``deployments.apps`` as ``apps/v1/deployments``."""
    from shmcache.sources.kubernetes import preferred_version

    plural, _, rest = resource.partition(".")
    if "/" in resource or not rest:
        return resource
    version, _, group = rest.partition(".")
    if not _VERSION.fullmatch(version):
        version, group = preferred_version(client, rest), rest
    return "/".join(part for part in (group, version, plural) if part)


def _directory(options: argparse.Namespace) -> Origin:
    from shmcache.sources.directory import DirectorySource

    api_version, _, kind = options.resource.rpartition("/")
    source = DirectorySource(
        options.dir,
        api_version=api_version or None,
        kind=kind,
        namespace=options.namespace or None,
    )
    text = f"{options.resource} in {os.path.abspath(options.dir)}"
    return Origin(source, f"{text} (namespace {options.namespace})" if options.namespace else text)


def _named(options: argparse.Namespace) -> Origin:
    settings = dict(options.settings)
    try:
        source = sources.load(options.source)(**settings)
    except (LookupError, TypeError, ValueError) as error:
        options.refuse(f"--source {options.source}: {error}")
    told = [f"{name}={value}" for name, value in sorted(settings.items())]
    return Origin(source, " ".join([options.source, *told]))


def _may_pass(error: Exception) -> bool:
    """Whether a source that fails so is only down or busy."""
    return isinstance(error, ConnectionRefusedError) or (
        isinstance(error, ApiError) and (error.status == 429 or error.status >= 500)
    )


def _explained(error: Exception, options: argparse.Namespace) -> Exception:
    if isinstance(error, ApiError) and error.status == 404:
        scope = " (and cluster-wide ones without --namespace)" if options.namespace else ""
        return Failure(
            f"the server has no resource {options.resource!r}: say its plural ('pods'), and outside"
            f" the core group the group too ('deployments.apps'){scope}. It answered {error}"
        )
    if isinstance(error, (Failure, ShmCacheError)):
        return error
    return Failure(f"the source cannot be listed: {type(error).__name__}: {error}")
