"""The nets of bench/step, in PyTorch: parameters in the same order, so that both sides can start from the same weights."""
import torch
from torch import nn
from torch.nn import functional as F


def conv_norm(inputs, outputs, kernel=1, stride=1, groups=1, activation=None):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return layers + ([activation(inplace=True)] if activation else [])


class InvertedBottleneck(nn.Module):
    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        layers = conv_norm(inputs, hidden, activation=nn.ReLU6) if expand > 1 else []
        layers += conv_norm(hidden, hidden, 3, stride, hidden, nn.ReLU6)
        self.conv = nn.Sequential(*layers, *conv_norm(hidden, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class GlobalPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def mobilenet_v2(classes, cifar):
    stages = [(1, 16, 1, 1), (6, 24, 2, 1 if cifar else 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    stages += [(6, 160, 3, 2), (6, 320, 1, 1)]
    layers = conv_norm(3, 32, 3, 1 if cifar else 2, activation=nn.ReLU6)
    inputs = 32
    for expand, outputs, blocks, stride in stages:
        for i in range(blocks):
            layers.append(InvertedBottleneck(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(*layers, *conv_norm(320, 1280, activation=nn.ReLU6), GlobalPool(), nn.Linear(1280, classes))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.main = nn.Sequential(*conv_norm(inputs, outputs, 3, stride, activation=nn.ReLU), *conv_norm(outputs, outputs, 3))
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.main(x) + self.shortcut(x), inplace=True)


def resnet18_cifar(classes):
    layers, inputs = conv_norm(3, 64, 3, activation=nn.ReLU), 64
    for stage in range(4):
        for i in range(2):
            layers.append(BasicBlock(inputs, 64 << stage, 2 if i == 0 and stage > 0 else 1))
            inputs = 64 << stage
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(512, classes))


class PreActivation(nn.Module):
    """He et al. 2016, with ReLU in place: the leanest form that PyTorch allows."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        same = stride == 1 and inputs == 4 * width
        self.downsample = None if same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, x):
        h = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(h)
        h = F.relu(self.bn2(self.conv1(h)), inplace=True)
        return self.conv3(F.relu(self.bn3(self.conv2(h)), inplace=True)) + shortcut


def preresnet(depth, classes):
    layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
    for stage in range(3):
        for i in range((depth - 2) // 9):
            layers.append(PreActivation(inputs, 16 << stage, 2 if i == 0 and stage > 0 else 1))
            inputs = 4 * (16 << stage)
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), GlobalPool(), nn.Linear(inputs, classes))


class ShuffleUnit(nn.Module):
    """Zhang et al. 2018, figure 2."""

    def __init__(self, inputs, outputs, stride, groups_in, groups):
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        hidden = outputs // 4
        self.groups, self.stride = groups, stride
        self.reduce = nn.Sequential(*conv_norm(inputs, hidden, groups=groups_in, activation=nn.ReLU))
        self.depthwise = nn.Sequential(*conv_norm(hidden, hidden, 3, stride, hidden))
        self.expand = nn.Sequential(*conv_norm(hidden, made, groups=groups))

    def forward(self, x):
        h = self.reduce(x)
        n, c, height, width = h.shape
        h = h.view(n, self.groups, c // self.groups, height, width).transpose(1, 2).reshape(n, c, height, width)
        h = self.expand(self.depthwise(h))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), h), 1), inplace=True)
        return F.relu(x + h, inplace=True)


def shufflenet_v1(classes, groups=3, first_stage=240):
    layers, inputs = [*conv_norm(3, 24, 3, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)], 24
    for stage, units in enumerate((4, 8, 4)):
        outputs = first_stage << stage
        for i in range(units):
            layers.append(ShuffleUnit(inputs, outputs, 2 if i == 0 else 1, 1 if stage == 0 and i == 0 else groups, groups))
            inputs = outputs
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(inputs, classes))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


class ChannelsLastFlatten(nn.Module):
    """Rows as Rewind flattens them: height, width, channels."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), ChannelsLastFlatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def build(name, depth):
    if name == "mobilenet_v2":
        return mobilenet_v2(1000, False)
    if name == "mobilenet_v2_cifar":
        return mobilenet_v2(10, True)
    if name == "shufflenet_v1":
        return shufflenet_v1(1000)
    if name == "resnet18_cifar":
        return resnet18_cifar(10)
    if name == "preresnet":
        return preresnet(depth, 10)
    return {"mlp": mlp, "lenet5": lenet}[name]()


def load(model, start):
    """Copies the tensors of `start` (name -> tensor, Rewind's order and layouts) into the model; returns x and y in PyTorch's."""

    def as_torch(t, shape):
        if t.dim() == 4:
            t = t.permute(0, 3, 1, 2)
        elif t.dim() == 3:  # depthwise: [KH, KW, C]
            t = t.permute(2, 0, 1).unsqueeze(1)
        if tuple(t.shape) != tuple(shape):
            raise SystemExit(f"a parameter of shape {tuple(t.shape)} meets one of {tuple(shape)}: the nets differ")
        return t

    x, y = start.pop("x"), start.pop("y")
    parameters = list(model.parameters())
    if len(parameters) != len(start):
        raise SystemExit(f"{len(start)} parameters meet {len(parameters)}: the nets differ")
    with torch.no_grad():
        for mine, theirs in zip(parameters, start.values()):
            mine.copy_(as_torch(theirs, mine.shape))
    return (x.permute(0, 3, 1, 2) if x.dim() == 4 else x), y
