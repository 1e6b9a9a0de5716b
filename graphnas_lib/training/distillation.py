"""A teacher beside the labels: the loss that ZenNAS's ImageNet recipe adds (Lin et al. 2021, released training code).

Two terms, both of weight 1: cross-entropy with the teacher's softmax, and smooth L1 between feature maps at 1/16 and
1/32 of the input's side, the student's projected by a 1x1 convolution that starts near zero. The teacher sees the same
augmented batch at its own resolution, in eval mode; nothing of it is trained or stored in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnas_lib.training.sgd import Draw, Loss

TEACHER_SIDE = 320  # ZenNAS: EfficientNet-B3 (noisy student) at 320 pixels
TEACHER = "tf_efficientnet_b3.ns_jft_in1k"  # its name in timm
RATIOS = (16, 32)
PROJECTION_STD = 1e-3  # of the initial weights


class Distilled(nn.Module):
    """A student that also notes, at every forward in training mode, how far it is from a teacher.

    `forward` gives the student's outputs; `extra` is then the sum of the terms of the teacher, a scalar. Projections
    are parameters of this module, so that an optimiser of it trains them.

    Args:
        student: (B, 3, H, W) -> (B, classes).
        teacher: likewise, with the same classes; frozen and put into eval mode.
        input_shape: (3, H, W) of the student's batches.
        side: of the teacher's input; batches are resized bilinearly.
        ratios: of the feature maps that are compared: input side over map side.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_shape: Sequence[int],
        side: int = TEACHER_SIDE,
        ratios: Sequence[int] = RATIOS,
        seed: int = 0,
    ):
        super().__init__()
        self.student, self.side, self.ratios, self.extra = student, side, tuple(ratios), None
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False)  # not a part of this module's state
        self._hooks: list = []
        self._seen: dict[str, dict[int, Tensor]] = {}  # by network and ratio, for the length of a forward pass
        widths, classes = self._watch("student", student, input_shape[0], input_shape[-1])
        teacher_widths, teacher_classes = self._watch("teacher", teacher, input_shape[0], side)
        if classes != teacher_classes:
            raise ValueError(f"A teacher must have the student's outputs; got {teacher_classes} and {classes}.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pairs = ((widths[ratio], teacher_widths[ratio]) for ratio in self.ratios)
            self.projections = nn.ModuleList(nn.Conv2d(*pair, 1, bias=False) for pair in pairs)
            for projection in self.projections:
                nn.init.normal_(projection.weight, std=PROJECTION_STD)

    def _watch(self, name: str, model: nn.Module, channels: int, side: int) -> tuple[dict[int, int], int]:
        """Hooks that note the last map at each ratio; returns the maps' widths and the number of classes."""
        seen = self._seen[name] = {}

        def note(_module: nn.Module, _inputs, output) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                seen.update({ratio: output for ratio in self.ratios if output.shape[-1] == -(-side // ratio)})

        self._hooks += [module.register_forward_hook(note) for module in model.modules() if module is not model]
        training, place = model.training, next(model.parameters()).device
        try:
            with torch.no_grad():
                outputs = model.eval()(torch.zeros(1, channels, side, side, device=place))
        finally:
            model.train(training)
        lacking = [ratio for ratio in self.ratios if ratio not in seen]
        if lacking:
            self.release()
            raise ValueError(
                f"The {name} must have feature maps at 1/{' and 1/'.join(map(str, self.ratios))} of an input of {side} "
                f"pixels; it has none at 1/{lacking[0]}. Use one with more strides of 2, or other `ratios`."
            )
        return {ratio: maps.shape[1] for ratio, maps in seen.items()}, outputs.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """The student's outputs (B, classes)."""
        outputs = self.student(images)
        if self.training:
            with torch.no_grad():
                larger = F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
                said = self.teacher(larger).float()
            self.extra = F.cross_entropy(outputs.float(), said.softmax(dim=1))
            for ratio, projection in zip(self.ratios, self.projections, strict=True):
                mine, theirs = self._seen["student"][ratio], self._seen["teacher"][ratio]
                theirs = F.interpolate(theirs.float(), size=mine.shape[-2:], mode="bilinear", align_corners=False)
                self.extra = self.extra + F.smooth_l1_loss(projection(mine).float(), theirs)
        for seen in self._seen.values():
            seen.clear()
        return outputs

    def beside(self, draw: Draw) -> Draw:
        """The same batches; to their loss comes how far the student is from its teacher."""

        def both(index: Tensor, step_seed: int) -> tuple[Tensor, Loss]:
            images, loss = draw(index, step_seed)
            return images, lambda outputs: loss(outputs) + self.extra

        return both

    def release(self) -> nn.Module:
        """The student, watched no longer."""
        for hook in self._hooks:
            hook.remove()
        return self.student


def load_teacher(name: str = TEACHER, *, pretrained: bool = True) -> nn.Module:
    """ZenNAS's teacher from the `timm` package, whose weights are downloaded once; ImportError without `timm`."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("ZenNAS's teacher needs the package timm: pip install -e '.[imagenet]'.") from error
    return timm.create_model(name, pretrained=pretrained)
