"""Ridge regression on a task of Table 4: what anything that learns features has to beat."""

from __future__ import annotations

import numpy as np
import torch

from graphnas_lib.datasets import Task

PENALTIES = tuple(10.0**power for power in range(-1, 7))  # chosen by leave-one-out on the training split


def ridge_regression(task: Task) -> float:
    """The task's metric on its test split, of linear functions of standardised inputs.

    Fields are regressed on fields, labels as classes, alike in weight where the metric counts classes alike. A series
    has the logarithms of its Fourier amplitudes as inputs too, since no linear function finds a rhythm in any phase.
    """
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(split) -> np.ndarray:
        inputs = split.fetch(torch.arange(len(split)))[0]
        series = [torch.log(torch.fft.rfft(inputs).abs() + 1e-3).flatten(1)] if inputs.dim() == 3 else []
        return torch.cat([inputs.flatten(1), *series], dim=1).numpy()

    held, targets, mask = task.test.fetch(torch.arange(len(task.test)))
    wanted = task.train.fetch(torch.arange(len(task.train)))[1]
    if task.facts.kind == "points":
        weight = None if task.weights is None else "balanced"
        model = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES, class_weight=weight))
        answers = torch.from_numpy(model.fit(features(task.train), wanted.numpy()).predict(features(task.test)))
        return task.score(torch.eye(task.facts.classes)[answers], targets, mask)
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features(task.train), wanted.flatten(1).numpy())
    predicted = torch.from_numpy(model.predict(features(task.test))).float()
    return task.score(predicted.reshape(targets.shape), targets, mask)
