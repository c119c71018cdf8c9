"""Warnings of our own; what scikit-learn has a name for goes by that name."""
# SPDX-License-Identifier: BSD-3-Clause

__all__ = ["InconsistentVersionWarning"]


class InconsistentVersionWarning(UserWarning):
    """Warning that an estimator was stored by another version of skbn.

    The counterpart of :class:`sklearn.exceptions.InconsistentVersionWarning`.

    Parameters
    ----------
    estimator_name : str
        Name of the estimator's class.

    current_skbn_version : str
        Version of skbn that loads it.

    original_skbn_version : str
        Version of skbn that stored it.

    Examples
    --------
    Make it an error where models are loaded:

    >>> import pickle
    >>> import warnings
    >>> from skbn import MLPClassifierBN
    >>> from skbn.exceptions import InconsistentVersionWarning
    >>> stored = pickle.dumps(MLPClassifierBN())
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", InconsistentVersionWarning)
    ...     pickle.loads(stored)
    MLPClassifierBN()
    """

    def __init__(
        self, *, estimator_name: str, current_skbn_version: str, original_skbn_version: str
    ) -> None:
        self.estimator_name = estimator_name
        self.current_skbn_version = current_skbn_version
        self.original_skbn_version = original_skbn_version

    def __str__(self) -> str:
        return (
            f"Loading {self.estimator_name} from version {self.original_skbn_version} of skbn with "
            f"version {self.current_skbn_version}. This might lead to breaking code or invalid "
            "results."
        )
