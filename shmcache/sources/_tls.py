"""What an error of TLS means to whoever has to put it right. May import: nothing of shmcache."""

from __future__ import annotations

import ssl

__all__ = ["explain_tls_error", "is_answer_of_tls"]

# The X509_V_ERR_ numbers of OpenSSL, which are the verify_code of an error.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}  # host name, IP address

# Reasons of OpenSSL, over its versions, for bytes that are no TLS.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


def explain_tls_error(error: BaseException) -> str:
    """Say in a sentence what went wrong between us and the server, and what to do.

    ``error`` is what urllib3 raised; the settings named are those of the Kubernetes client's
    configuration.
    """
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _explain_certificate(cause)
    if not isinstance(cause, ssl.SSLError):
        return f"TLS cannot be set up: {cause}; check ssl_ca_cert, cert_file and key_file"
    reason = cause.reason or ""
    if reason in _NO_TLS:
        return "the server does not speak TLS on this port: use http://, or the port of https"
    if "CERTIFICATE_REQUIRED" in reason:
        return "the server wants a client certificate: set cert_file and key_file"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return (
            f"the server refused our client certificate ({_words(reason)}): check cert_file and "
            "key_file, and whether it trusts who signed it"
        )
    return f"TLS failed: {cause}; check ssl_ca_cert, cert_file and key_file"


def is_answer_of_tls(text: str) -> bool:
    """Whether ``text`` is how a server of TLS answers a request in plain HTTP."""
    # A record of TLS (an alert is 21, 3, ...) where a status line should be, as http.client
    # shows it; and the words of Go's server, nginx and Apache.
    return "\x15\x03" in text or r"\x15\x03" in text or ("HTTP request" in text and "HTTPS" in text)


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "the server's certificate has expired: renew it, or set the clock of this machine"
    if code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet: set the clock of this machine"
    if code in _UNKNOWN_CA:
        return (
            "the server's certificate is signed by nobody that we trust: set ssl_ca_cert to "
            f"the file of the server's CA ({error.verify_message})"
        )
    if code in _OTHER_NAME:
        return (
            "the server's certificate is for other names: use one of them as host, or set "
            f"tls_server_name ({error.verify_message.rstrip('.')})"
        )
    return f"the server's certificate does not verify: {error.verify_message}; check ssl_ca_cert"


def _cause(error: BaseException) -> BaseException:
    """The error of the ssl module or of the system inside those of urllib3."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return error


def _words(reason: str) -> str:
    return reason.partition("ALERT_")[2].replace("_", " ").lower() or reason
