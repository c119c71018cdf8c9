"""scikit-learn's callbacks: fit is one task of ``sklearn.callback``, every epoch a task inside it.

The estimator that a hook is given is a copy with the weights of that epoch (not the best ones so
far) and the moving statistics: the population's are measured once, when fit ends, and the task of
the whole fit shows them. Copies, and the rows that early stopping leaves for training, are made
only if a hook asks for them.
"""
# SPDX-License-Identifier: BSD-3-Clause

from functools import cache

from sklearn.utils import indexable

from skbn._sklearn_compat import check_sample_weight, safe_indexing
from skbn._training import Observer


class EpochTasks(Observer):
    """Calls the hooks of the callbacks that an estimator has, and stops training if one says so.

    Parameters
    ----------
    estimator : estimator
        Whose callbacks they are.
    X, y, sample_weight
        Training data as the user gave them.
    rows : ndarray of int or None
        Which of their rows training sees; None for all.
    fitted_attributes : callable
        Returns the attributes of an estimator that could predict by now, or None.
    task_name : str
        Name of the whole task.
    max_iter : int
        Epochs at most.
    """

    def __init__(
        self, estimator, *, X, y, sample_weight, rows, fitted_attributes, task_name, max_iter
    ):
        def seen(data):
            return data if rows is None else cache(lambda: safe_indexing(*indexable(data), rows))

        self.arguments = {"estimator": estimator, "X": seen(X), "y": seen(y)}
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, X)  # a number stands for one each
            weights = weights if rows is None else weights[rows]
            self.arguments["metadata"] = {"sample_weight": weights}
        self.fitted_attributes = fitted_attributes
        self.epoch = None
        self.fit = estimator._init_callback_context(task_name=task_name, max_subtasks=max_iter)
        self.fit.call_on_fit_task_begin(**self.arguments)

    def epoch_began(self):
        epoch = self.fit.subcontext(task_name="epoch")
        epoch.call_on_fit_task_begin(
            **self.arguments, reconstruction_attributes=self.fitted_attributes
        )
        self.epoch = epoch

    def epoch_ended(self, history):
        if not history.is_finite:  # training is about to say so itself; close ends the epoch
            return False
        epoch, self.epoch = self.epoch, None
        return epoch.call_on_fit_task_end(
            **self.arguments, reconstruction_attributes=self.fitted_attributes
        )

    def close(self):
        """End an epoch that was broken off: every beginning has its end, though an empty one."""
        if self.epoch is not None:
            self.epoch.call_on_fit_task_end(estimator=self.arguments["estimator"])

    def fit_ended(self):
        """End the task of the whole fit; the estimator is fitted by now."""
        self.fit.call_on_fit_task_end(**self.arguments, reconstruction_attributes={})
