"""scikit-learn's digits (the test set of UCI's optical recognition of digits): 1,797 grey images of 8x8, 10 classes.

Small enough to train in a second, and installed with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import numpy as np

from ticketry.errors import MissingExtraError
from ticketry.tasks.base import Splits
from ticketry.tasks.data.locate import Place
from ticketry.tasks.data.split import hold_out, pick

VALIDATION_PER_CLASS = 20
TEST_PER_CLASS = 40


def read(_: tuple[Place, ...]) -> Splits:
    """The splits: no test set is published, so 40 of each class are taken for it, and 20 for validation.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "digits", "the task digits") from error
    values, labels = load_digits(return_X_y=True)
    images = values.astype(np.uint8).reshape(-1, 1, 8, 8)
    train, test, validation = hold_out(labels, TEST_PER_CLASS, VALIDATION_PER_CLASS)
    return Splits(
        train=pick(images, labels, train),
        validation=pick(images, labels, validation),
        test=pick(images, labels, test),
    )
