"""Every error that this library raises on purpose.

PipelineError
├── RequestError            what was asked for is wrong: exit code 2, nothing was started
│   ├── ConfigError         a flag or a line of the config file
│   ├── InputError          the input or table: missing, empty, of no known kind
│   ├── ModelError          a checkpoint or bundle that does not fit
│   ├── FingerprintError    what is at the output was made with other weights or settings
│   └── ShapeError          a tensor of the wrong shape or dtype
├── StorageError            a read or a put failed: exit code 1, run again to continue
│   └── AccessError         credentials or rights are missing or wrong: at the start exit code 2
│       └── CredentialsExpiredError  they were good: later than the start exit code 1, run again
├── TableError              the table breaks one of its own promises
├── ClusterError            no node can do the work: exit code 1, run again to continue
└── Rejection               one image or face that gives no latent, with its reason
"""

from __future__ import annotations

from pipeline.redaction import without_secrets

# Enough for a path and a reason; a list of ten thousand column names hides both.
_LONGEST = 1000


class PipelineError(Exception):
    """Base of all; its text is one line for the user."""

    def __str__(self) -> str:
        """The text as a terminal shows it.

        Credentials are blanked out. Names out of archives may hold line breaks, escape sequences
        and marks that turn the direction of writing: these are written as `\\n`, `\\x1b`,
        `\\u202e`. Of a longer text the middle is left out.
        """
        # Not super(): a KeyError would show the text in quotes. Blanked out before it is cut.
        text = printable(without_secrets(Exception.__str__(self)))
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 303]} ... {text[-298:]}"
        return text


def printable(text: str) -> str:
    """`text` in one line, with every character that does more than show itself escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class RequestError(PipelineError):
    """The request cannot be carried out as it stands; the text says what to change."""


class ConfigError(RequestError):
    """A setting is unknown, of the wrong type or out of range."""


class InputError(RequestError):
    """What is to be read (images, codes, pairs) is not there, empty, or of no known kind."""


class ModelError(RequestError):
    """A model file is missing, damaged, or does not have the layout that it claims."""


class FingerprintError(RequestError):
    """The table or training at the output is one of other weights or settings; a line for each."""

    def __str__(self) -> str:
        """One line for what is there, and one for each setting that differs."""
        return "\n".join(map(printable, without_secrets(Exception.__str__(self)).split("\n")))


class ShapeError(RequestError, ValueError):
    """A tensor does not have the documented shape, dtype or value range."""


class StorageError(PipelineError):
    """Reading or writing an object failed."""


class AccessError(StorageError):
    """Storage gives nothing to these credentials, or to this user; the text says what to set."""


class CredentialsExpiredError(AccessError):
    """Storage gives nothing to these credentials any more; the text says how to renew them."""


class TableError(PipelineError):
    """A table is incomplete or damaged."""


class ClusterError(PipelineError):
    """No node of the cluster can do what is to be done."""
