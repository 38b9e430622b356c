"""Every error that this library raises on purpose.

PipelineError
├── RequestError            what was asked for is wrong: exit code 2, nothing was started
│   ├── ConfigError         a flag or a line of the config file
│   ├── InputError          the input URI: missing, empty, of no known kind
│   ├── ModelError          a checkpoint or bundle that does not fit
│   ├── FingerprintError    the table was made with other weights or settings
│   └── ShapeError          a tensor of the wrong shape or dtype
├── StorageError            a read or a put failed: exit code 1, run again to continue
├── TableError              the table breaks one of its own promises
└── Rejection               one image or face that gives no latent, with its reason
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all; its text is one line for the user."""


class RequestError(PipelineError):
    """The request cannot be carried out as it stands; the text says what to change."""


class ConfigError(RequestError):
    """A setting is unknown, of the wrong type or out of range."""


class InputError(RequestError):
    """The input does not exist, holds no images, or is of no known kind."""


class ModelError(RequestError):
    """A model file is missing, damaged, or does not have the layout that it claims."""


class FingerprintError(RequestError):
    """The table at the output was made with other weights or settings."""


class ShapeError(RequestError, ValueError):
    """A tensor does not have the documented shape, dtype or value range."""


class StorageError(PipelineError):
    """Reading or writing an object failed."""


class TableError(PipelineError):
    """A table is incomplete, damaged, or not a table."""
