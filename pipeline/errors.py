"""Every error that this library raises on purpose.

PipelineError
├── RequestError            a wrong request: exit code 2, nothing was started
│   ├── ConfigError         a flag or a line of the config file
│   ├── InputError          the input or table: missing, empty, of an unknown kind
│   ├── ModelError          a checkpoint or bundle that does not fit
│   ├── FingerprintError    the output was made with other weights or settings
│   └── ShapeError          a tensor of the wrong shape or dtype
├── StorageError            a read or write failed: exit code 1, run again to continue
│   ├── MissingError        there is no such object
│   └── AccessError         credentials or rights are missing or wrong: exit code 2 at the start
│       └── CredentialsExpiredError  credentials expired later: exit code 1, run again
├── TableError              the table violates one of its own guarantees
├── ClusterError            no node can do the work: exit code 1, run again to continue
└── Rejection               an image or face that gives no latent, with its reason
"""

from __future__ import annotations

from pipeline.redaction import without_secrets

# Enough for a path and a reason, which a list of ten thousand column names would hide.
_LONGEST = 1000


class PipelineError(Exception):
    """Base class of all; its text is one line for the user."""

    def __str__(self) -> str:
        """Return the text as a terminal can show it.

        Credentials are blanked out. Names from archives may hold line breaks, escape sequences and
        marks that reverse the direction of writing: these are written as `\\n`, `\\x1b`, `\\u202e`.
        The middle of a long text is omitted.
        """
        # Not super(): a KeyError would quote the text. Credentials are blanked before it is cut.
        text = printable(without_secrets(Exception.__str__(self)))
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 303]} ... {text[-298:]}"
        return text


def printable(text: str) -> str:
    """Return `text` as one line, with every non-printable character escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class RequestError(PipelineError):
    """A request that cannot be carried out; the text says what to change."""


class ConfigError(RequestError):
    """A setting that is unknown, of the wrong type or out of range."""


class InputError(RequestError):
    """An input (images, codes, pairs) that is missing, empty or of an unknown kind."""


class ModelError(RequestError):
    """A model file that is missing, damaged, or does not have the layout that it declares."""


class FingerprintError(RequestError):
    """A table or training at the output with other weights or settings; one line for each."""

    def __str__(self) -> str:
        """Return one line for the existing output, and one per setting that differs."""
        return "\n".join(map(printable, without_secrets(Exception.__str__(self)).split("\n")))


class ShapeError(RequestError, ValueError):
    """A tensor without the documented shape, dtype or value range."""


class StorageError(PipelineError):
    """A read or write of an object that failed."""


class MissingError(StorageError):
    """A file or object that does not exist."""


class AccessError(StorageError):
    """Access that storage denies to these credentials or user; the text says what to set."""


class CredentialsExpiredError(AccessError):
    """Credentials that have expired; the text says how to renew them."""


class TableError(PipelineError):
    """A table that is incomplete or damaged."""


class ClusterError(PipelineError):
    """A cluster without a node that can do the work."""
