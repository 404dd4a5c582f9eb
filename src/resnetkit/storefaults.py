"""What an object store means when it gives no bytes: which answers are worth another try, and what to do about others.

The errors of botocore, aiohttp, gcsfs and huggingface_hub are told apart by what they carry, so that none need be
installed.
Codes: docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; statuses: RFC 9110, section 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

AGAIN = {408, 425, 429, 500, 502, 503, 504}  # too slow, too early, too many, the store's own trouble
AGAIN_CODES = {
    "NoSuchUpload",  # what aborting says of an upload whose completion timed out, though it was done
    "RequestTimeout",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "RequestLimitExceeded",
}
# Kinds of error of botocore, aiohttp, httpx and fsspec, by name; few of them derive from OSError.
BROKEN = {"HTTPClientError", "ConnectionError", "ResponseParserError", "ClientConnectionError", "TransportError"}
CUT = {"ClientPayloadError", "IncompleteReadError", "ResponseStreamingError"}
SLOW = {"FSTimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "TimeoutException"}
LOCKED_OUT = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}

CREDENTIALS = (
    "give credentials, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role of the machine, or "
    "for a public bucket set FSSPEC_S3='{\"anon\": true}'"
)
REFUSED = "check that these credentials may read it (and write it, where it is written)"
BUCKET = "check the bucket's name, and AWS_ENDPOINT_URL if the store is not Amazon's"
NETWORK = "check the network and the address (AWS_ENDPOINT_URL, for an S3 that is not Amazon's)"
ADVICE = {  # by S3's code, else by HTTP's status
    "NoSuchBucket": BUCKET,
    "InvalidBucketName": BUCKET,
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the bucket's region",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "the credentials have expired; get new ones",
    "InvalidAccessKeyId": "the store does not know these credentials; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret does not belong to the key; check AWS_SECRET_ACCESS_KEY or the profile",
    "InvalidObjectState": "it is archived; restore it first",
    "301": "set AWS_DEFAULT_REGION to the bucket's region",
    "400": "check its name, and whether the credentials have expired",
    "401": "the server wants to know who asks; put a name and a password into ~/.netrc, or for hf:// set HF_TOKEN",
    "403": REFUSED,
    "404": "check its name",
}
SAID = {"400": "bad request", "401": "not authorised", "403": "refused", "404": "not found", "412": "changed"}


@dataclass(frozen=True)
class Fault:
    """One refusal.

    said     what the store, or the way to it, gave as the reason
    advice   what to do
    again    another try may help
    missing  the store is there, the object is not
    changed  the object is no longer the one that was asked for
    """

    said: str
    advice: str
    again: bool = False
    missing: bool = False
    changed: bool = False


class WrongLength(Exception):  # noqa: N818 - it names what was found
    """An answer of `got` bytes where `wanted` were asked for; None: cut off where nobody says."""

    def __init__(self, got: int, wanted: int) -> None:
        super().__init__(f"it answers {got:,} bytes where {wanted:,} were asked for")
        self.got, self.wanted = got, wanted


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def answered(error: BaseException) -> tuple[str, str, str]:
    """S3's code, HTTP's status and the message of an answer that refuses; empty strings where there is none."""
    for link in chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore.exceptions.ClientError
            about = response.get("Error", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            code = str(about.get("Code", ""))
            return ("" if code.isdigit() else code), str(status or code), str(about.get("Message", ""))
        refused = getattr(response, "status_code", None)  # huggingface_hub
        if isinstance(refused, int):
            return "", str(refused), str(getattr(link, "server_message", None) or "")
        status = getattr(link, "status", None) or getattr(link, "code", None)  # aiohttp, gcsfs
        if isinstance(status, int):
            return "", str(status), str(getattr(link, "message", ""))
    return "", "", ""


def fault(error: BaseException) -> Fault:
    """What an error of a library means."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec says of every failure to ask a web server for a file that it is not there
    links = list(chain(error))
    names = {kind.__name__ for link in links for kind in type(link).__mro__}
    if any("CERTIFICATE_VERIFY_FAILED" in str(link) for link in links):
        return Fault(plain(error), "have this machine trust the store's certificate (AWS_CA_BUNDLE, SSL_CERT_FILE)")
    if isinstance(error, TimeoutError) or names & SLOW:
        return Fault("no answer in time", NETWORK, again=True)
    if names & CUT:
        return Fault("its answer was cut off", NETWORK, again=True)
    if names & BROKEN:
        return Fault(plain(error), NETWORK, again=True)
    code, status, message = answered(error)
    if code or status:
        return from_answer(code, status, message)
    if isinstance(error, WrongLength):
        advice = "the server does not serve parts of files; use another, or fetch the files first"
        return Fault(str(error), advice, again=error.got < error.wanted)
    if isinstance(error, FileNotFoundError):
        return Fault("not found", ADVICE["404"], missing=True)
    if isinstance(error, PermissionError):
        return Fault(f"refused ({plain(error)})", REFUSED)
    if names & LOCKED_OUT:
        return Fault("no credentials", CREDENTIALS)
    if isinstance(error, OSError | EOFError):
        return Fault(plain(error), NETWORK, again=True)
    return Fault(plain(error), "check the address and the settings of the store")


def from_answer(code: str, status: str, message: str) -> Fault:
    """What a refusal with a code or a status means."""
    word = message.strip().rstrip(".") or SAID.get(status, "")
    said = " ".join(filter(None, (status, code, f"({word})" if word else "")))
    if code in AGAIN_CODES or (status.isdigit() and int(status) in AGAIN):
        return Fault(said, "the store refuses more than it serves; try later, or with fewer threads", again=True)
    if status == "412":
        return Fault(said, "", changed=True)
    advice = ADVICE.get(code) or ADVICE.get(status) or "check the address and the settings of the store"
    return Fault(said, advice, missing=status == "404" and code != "NoSuchBucket")


def plain(error: BaseException) -> str:
    """An error's text on one line, or its kind where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
