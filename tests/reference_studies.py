"""Slow, literal transcriptions of what the studies compute: loops over plain numbers, no shortcuts."""

import cmath
import math

import torch


def two_pass_std(values):
    """Standard deviation of a flat list: first the mean, then the squared deviations."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def spectrum(filter_, grid):
    """Return {(row frequency, column frequency): power} of a filter (C, h, w), by the definition of the DFT."""
    found = {}
    channels, height, width = filter_.shape
    half = range(-(grid // 2), grid - grid // 2)
    for u in half:
        for v in half:
            power = 0.0
            for c in range(channels):
                total = sum(
                    filter_[c][y][x].item() * cmath.exp(-2j * cmath.pi * (u * y + v * x) / grid)
                    for y in range(height)
                    for x in range(width)
                )
                power += abs(total) ** 2
            found[u / grid, v / grid] = power
    return found


def peak_frequency(filter_, grid):
    """Return the length of the frequency where the spectrum is largest."""
    powers = spectrum(filter_, grid)
    most = max(powers.values())
    return min(math.hypot(u, v) for (u, v), p in powers.items() if p >= most * (1 - 1e-9))


def folded_share(image, stride, grid, natural=False):
    """Return the share of power beyond half a cycle per stride; the mean left out, 1/f² for natural images."""
    beyond = whole = 0.0
    for (u, v), power in spectrum(image, grid).items():
        if u == v == 0:
            continue
        power = power / (u * u + v * v) if natural else power
        whole += power
        if abs(u) > 1 / (2 * stride[0]) or abs(v) > 1 / (2 * stride[1]):
            beyond += power
    return beyond / whole if whole else 0.0


def likeness(a, b):
    """Return the largest |cosine| of two filters (C, h, w) over all shifts, zero outside."""
    channels, height, width = a.shape
    best = 0.0
    for dy in range(1 - height, height):
        for dx in range(1 - width, width):
            total = 0.0
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            total += a[c][y][x].item() * b[c][y + dy][x + dx].item()
            best = max(best, abs(total))
    norm = math.sqrt(a.square().sum().item() * b.square().sum().item())
    return best / norm if norm else 0.0


def colour_share(filter_):
    """Return the share of the energy of (C, h, w) that its channels do not have in common."""
    channels, height, width = filter_.shape
    own = whole = 0.0
    for y in range(height):
        for x in range(width):
            values = [filter_[c][y][x].item() for c in range(channels)]
            mean = sum(values) / channels
            own += sum((v - mean) ** 2 for v in values)
            whole += sum(v * v for v in values)
    return own / whole if whole else 0.0


def sign(value):
    return (value > 0) - (value < 0)


def delta(features, masked):
    """Return, for each pair i < j, the Hamming distance of sign ε_i and sign ε_j per element (Table 1)."""
    epsilon = [[sign(x - y) for x, y in zip(a, b, strict=True)] for a, b in zip(features, masked, strict=True)]
    found = []
    for i in range(len(epsilon)):
        for j in range(i + 1, len(epsilon)):
            differing = sum(a != b for a, b in zip(epsilon[i], epsilon[j], strict=True))
            found.append(differing / len(epsilon[i]))
    return found


def moved(image, kind, amount, fill):
    """Return the image (C, H, W) shifted, scaled or turned about its centre, bilinear, `fill` outside."""
    channels, height, width = image.shape
    result = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            down, right = y - (height - 1) / 2, x - (width - 1) / 2
            if kind == "vertical":
                down -= amount
            elif kind == "horizontal":
                right -= amount
            elif kind == "scale":
                down, right = down / amount, right / amount
            else:  # counterclockwise as displayed: the content at angle a comes from a - amount
                turn = math.radians(amount)
                down, right = (
                    down * math.cos(turn) + right * math.sin(turn),
                    right * math.cos(turn) - down * math.sin(turn),
                )
            for c in range(channels):
                result[c][y][x] = _bilinear(image[c], down + (height - 1) / 2, right + (width - 1) / 2, fill)
    return result


def _bilinear(plane, y, x, fill):
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row in (top, top + 1):
        for col in (left, left + 1):
            inside = 0 <= row < plane.shape[0] and 0 <= col < plane.shape[1]
            value = plane[row][col].item() if inside else fill
            total += value * (1 - abs(y - row)) * (1 - abs(x - col))
    return total


def neighbours(queries, features, k, metric):
    """Return, per query, the k nearest (distance, index), nearest first, smaller index first among equals."""
    answer = []
    for query in queries:
        rows = []
        for index, other in enumerate(features):
            if metric == "l2":
                distance = math.sqrt(sum((a - b) ** 2 for a, b in zip(query, other, strict=True)))
            else:
                dot = sum(a * b for a, b in zip(query, other, strict=True))
                norm = math.sqrt(sum(a * a for a in query)) * math.sqrt(sum(b * b for b in other))
                distance = 1 - dot / norm if norm else 1.0
            rows.append((distance, index))
        answer.append(sorted(rows)[:k])
    return answer
