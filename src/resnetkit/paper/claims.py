"""What the paper prints: its tables and figures, each with what it takes to see it again.

Numbers are errors in per cent unless said otherwise, from arXiv 1512.03385v1.
"""

from __future__ import annotations

from dataclasses import dataclass

# Table 1: depth to (multiply-adds as printed, which the paper calls FLOPs).
TABLE1_BILLIONS = {18: "1.8", 34: "3.6", 50: "3.8", 101: "7.6", 152: "11.3"}
TABLE1_OUTPUTS = {"conv1": 112, "conv2_x": 56, "conv3_x": 28, "conv4_x": 14, "conv5_x": 7, "fc": 1}
TABLE1_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# What stands inside a block of conv2_x … conv5_x: kernel and filters of each convolution.
TABLE1_BASIC = tuple(((3, width), (3, width)) for width in (64, 128, 256, 512))
TABLE1_BOTTLENECK = tuple(((1, width), (3, width), (1, 4 * width)) for width in (64, 128, 256, 512))

# Table 2: top-1 on ImageNet validation, 10-crop. Residual networks with option A.
TABLE2 = {"plain18": 27.94, "resnet18-A": 27.88, "plain34": 28.54, "resnet34-A": 25.03}
# Table 3: top-1 and top-5 on ImageNet validation, 10-crop.
TABLE3 = {
    "VGG-16": (28.07, 9.33),
    "plain34": (28.54, 10.02),
    "resnet34-A": (25.03, 7.76),
    "resnet34-B": (24.52, 7.46),
    "resnet34-C": (24.19, 7.40),
    "resnet50": (22.85, 6.71),
    "resnet101": (21.75, 6.05),
    "resnet152": (21.43, 5.71),
}
# Table 4: single models, scores averaged over scales, top-1 and top-5 on ImageNet validation.
TABLE4 = {
    "resnet34-B": (21.84, 5.71),
    "resnet34-C": (21.53, 5.60),
    "resnet50": (20.74, 5.25),
    "resnet101": (19.87, 4.60),
    "resnet152": (19.38, 4.49),
}
TABLE5 = {"ensemble of six, test set, top-5": 3.57}
# Table 6: CIFAR-10 test error; parameters in millions as printed.
TABLE6 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
TABLE6_MILLIONS = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}
TABLE7 = {"VGG-16, VOC 07+12": 73.2, "ResNet-101, VOC 07+12": 76.4, "VGG-16, 07++12": 70.4, "ResNet-101, 07++12": 73.8}
TABLE8 = {"VGG-16, mAP@[.5, .95]": 21.2, "ResNet-101, mAP@[.5, .95]": 27.2}


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper. `study` is what `resnet paper run` takes for it; without one, `why` says why."""

    key: str
    title: str
    study: str = ""
    computed: bool = False  # follows from the networks alone
    why: str = ""

    @property
    def name(self) -> str:
        """`Table 1` for "table1"."""
        kind = self.key.rstrip("0123456789")
        return f"{kind.capitalize()} {self.key[len(kind) :]}"


DETECTION = "needs a detector around the network and its data sets; features() gives the maps that it stands on"
ITEMS = (
    Item("figure1", "a plain network of 56 layers errs more than one of 20, in training too", "degradation"),
    Item("figure2", "a residual block: y = F(x) + x", computed=True, why="BasicBlock in resnetkit/model.py"),
    Item(
        "figure3",
        "VGG-19, plain-34 and ResNet-34 side by side",
        computed=True,
        why="resnet model plain34 and resnet34; VGG-19 is of another family",
    ),
    Item("figure4", "ImageNet: training and validation error, plain and residual, 18 and 34 layers", "imagenet"),
    Item("figure5", "the basic block and the bottleneck", computed=True, why="BasicBlock, Bottleneck in model.py"),
    Item("figure6", "CIFAR-10: error against iterations, plain and residual, 20 to 110 layers", "degradation"),
    Item("figure7", "standard deviations of layer responses", "degradation"),
    Item("table1", "the networks for ImageNet, and what they cost", computed=True),
    Item("table2", "ImageNet: plain and residual, 18 and 34 layers", "imagenet"),
    Item("table3", "ImageNet: shortcuts A, B and C; 50, 101 and 152 layers", "imagenet"),
    Item("table4", "ImageNet: single models at several scales", why="needs networks trained on ImageNet"),
    Item(
        "table5", "ImageNet: an ensemble of six, 3.57 %", why="needs networks trained on ImageNet, and its test server"
    ),
    Item("table6", "CIFAR-10: residual networks of 20 to 1202 layers", "table6"),
    Item("table7", "detection on PASCAL VOC", why=DETECTION),
    Item("table8", "detection on COCO", why=DETECTION),
    Item("table9", "detection on COCO, improvements", why=DETECTION),
    Item("table10", "detection on PASCAL VOC 2007, per class", why=DETECTION),
    Item("table11", "detection on PASCAL VOC 2012, per class", why=DETECTION),
    Item("table12", "detection on ImageNet", why=DETECTION),
    Item("table13", "localisation on ImageNet, by steps", why=DETECTION),
    Item("table14", "localisation on ImageNet, against others", why=DETECTION),
)
