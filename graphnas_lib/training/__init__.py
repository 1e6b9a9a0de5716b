"""Training of networks: recipes, augmentation, one loop, teachers.

`train(network, dataset)` gives the test accuracy and the log, `train_each` those of several networks side by side,
`train_task` the metric of a NAS-Bench-360 task, `ridge_regression` that of linear functions.
"""

from graphnas_lib.training.distillation import TEACHER, load_teacher
from graphnas_lib.training.recipes import RECIPES, Recipe, cut_batch
from graphnas_lib.training.shallow import ridge_regression
from graphnas_lib.training.supervised import evaluate, train, train_each, train_task
