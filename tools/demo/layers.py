"""Layers with a forward and a backward pass in numpy: just enough to train the demonstration network.

Feature maps are float32 ``[batch, channels, height, width]``. Each layer keeps what its backward pass needs; parameters and
their gradients are in the dicts ``params`` and ``grads``.
"""

import numpy as np

__all__ = ["Adam", "Conv", "Dense", "GlobalAveragePool", "MaxPool", "Relu", "Residual", "Sequence", "softmax_loss"]


class Layer:
    """A layer without parameters; the base of the others."""

    def __init__(self):
        self.params, self.grads = {}, {}

    def layers(self):
        """Yield the layers that have parameters of their own."""
        yield self


class Conv(Layer):
    """A 3 × 3 convolution, padded by one pixel, with bias."""

    def __init__(self, rng, inputs, outputs):
        super().__init__()
        self.params["weight"] = rng.normal(0, np.sqrt(2 / (9 * inputs)), (outputs, inputs, 3, 3)).astype(np.float32)
        self.params["bias"] = np.zeros(outputs, np.float32)

    def forward(self, x):
        self.shape = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        self.columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)
        weight = self.params["weight"].reshape(len(self.params["weight"]), -1)
        y = self.columns @ weight.T + self.params["bias"]
        return y.reshape(x.shape[0], *x.shape[2:], -1).transpose(0, 3, 1, 2)

    def backward(self, dy):
        batch, channels, height, width = self.shape
        rows = dy.transpose(0, 2, 3, 1).reshape(-1, dy.shape[1])
        weight = self.params["weight"]
        self.grads["weight"] = (rows.T @ self.columns).reshape(weight.shape)
        self.grads["bias"] = rows.sum(0)
        columns = (rows @ weight.reshape(len(weight), -1)).reshape(batch, height, width, channels, 3, 3)
        dx = np.zeros((batch, channels, height + 2, width + 2), np.float32)
        for ky in range(3):
            for kx in range(3):
                dx[:, :, ky : ky + height, kx : kx + width] += columns[..., ky, kx].transpose(0, 3, 1, 2)
        return dx[:, :, 1:-1, 1:-1]


class Dense(Layer):
    """A fully connected layer on ``[batch, features]``."""

    def __init__(self, rng, inputs, outputs):
        super().__init__()
        self.params["weight"] = rng.normal(0, np.sqrt(1 / inputs), (outputs, inputs)).astype(np.float32)
        self.params["bias"] = np.zeros(outputs, np.float32)

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, dy):
        self.grads["weight"], self.grads["bias"] = dy.T @ self.x, dy.sum(0)
        return dy @ self.params["weight"]


class Relu(Layer):
    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy):
        return dy * self.mask


class MaxPool(Layer):
    """Maximum over windows of 2 × 2; sides must be even."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        windows = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
        y = windows.max((3, 5))
        self.mask = windows == y[:, :, :, None, :, None]
        self.mask = self.mask / self.mask.sum((3, 5), keepdims=True)
        return y

    def backward(self, dy):
        spread = self.mask * dy[:, :, :, None, :, None]
        batch, channels, height, _, width, _ = spread.shape
        return spread.reshape(batch, channels, height * 2, width * 2).astype(np.float32)


class GlobalAveragePool(Layer):
    """``[batch, channels, height, width]`` to ``[batch, channels]``."""

    def forward(self, x):
        self.shape = x.shape
        return x.mean((2, 3))

    def backward(self, dy):
        return np.broadcast_to(dy[:, :, None, None] / (self.shape[2] * self.shape[3]), self.shape).astype(np.float32)


class Sequence(Layer):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def layers(self):
        for part in self.parts:
            yield from part.layers()

    def forward(self, x):
        for part in self.parts:
            x = part.forward(x)
        return x

    def backward(self, dy):
        for part in reversed(self.parts):
            dy = part.backward(dy)
        return dy


class Residual(Sequence):
    """``x + sequence(x)``."""

    def forward(self, x):
        return x + super().forward(x)

    def backward(self, dy):
        return dy + super().backward(dy)


def softmax_loss(logits, labels):
    """Return the mean cross-entropy and its gradient."""
    shifted = logits - logits.max(1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(probability[rows, labels] + 1e-12).mean()
    gradient = probability
    gradient[rows, labels] -= 1
    return float(loss), (gradient / len(labels)).astype(np.float32)


class Adam:
    """Kingma and Ba's optimiser, with the usual constants and decoupled weight decay."""

    def __init__(self, model, decay=1e-4):
        self.layers = list(model.layers())
        self.decay = decay
        self.moments = [{name: (0.0, 0.0) for name in layer.params} for layer in self.layers]
        self.step_count = 0

    def step(self, rate):
        """Apply one update with learning rate ``rate`` to every parameter."""
        self.step_count += 1
        for layer, moments in zip(self.layers, self.moments):
            for name, value in layer.params.items():
                gradient = layer.grads[name]
                mean, square = moments[name]
                mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
                moments[name] = mean, square
                corrected = mean / (1 - 0.9**self.step_count)
                scale = np.sqrt(square / (1 - 0.999**self.step_count)) + 1e-8
                value -= (rate * (corrected / scale + self.decay * value)).astype(np.float32)
