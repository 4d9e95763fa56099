"""Training-free peers against slow, obvious versions."""

import numpy as np
import pytest
import torch

from rvlr_lib.evaluation.baselines import (
    centre,
    choose_on_validation,
    interpolate_weights,
    normalise_by_neighbours,
    principal_components,
    spectral_cut,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(vector):
    return vector / sum(float(v) ** 2 for v in vector) ** 0.5


def test_centring_row_by_row():
    features, reference = rows(6, 4), rows(9, 4, seed=1) + 2
    mean = [sum(float(r[d]) for r in reference) / 9 for d in range(4)]
    slow = [unit(row - torch.tensor(mean, dtype=torch.float64)) for row in features]
    torch.testing.assert_close(centre(features, reference), torch.stack(slow))
    assert centre(features.float(), reference).dtype == torch.float32
    assert centre(reference, reference).mean(dim=0).norm() < 0.3  # the offset is gone


def test_principal_components_against_numpy():
    """Leading right singular vectors of all reference rows, one direction at a time by deflation."""
    images, texts, seen, told = rows(5, 6), rows(7, 6, seed=1), rows(30, 6, seed=2) + 1, rows(40, 6, seed=3)
    stacked = np.concatenate([seen, told])
    rest = stacked - stacked.mean(axis=0)
    found = principal_components(images, texts, seen, told, width=3)
    slow = [[], []]
    for _ in range(3):
        direction = np.linalg.svd(rest)[2][0]
        rest = rest - np.outer(rest @ direction, direction)
        for side, features in zip(slow, (images, texts), strict=True):
            side.append((features.numpy() - stacked.mean(axis=0)) @ direction)
    for ours, columns in zip(found, slow, strict=True):
        theirs = np.stack([unit(row) for row in np.stack(columns, axis=1)])
        signs = np.sign((ours.numpy() * theirs).sum(axis=0))  # a direction has no sign
        np.testing.assert_allclose(ours.numpy(), theirs * signs, atol=1e-9)
    everything = principal_components(images, texts, seen, told, width=6)
    mean = torch.from_numpy(stacked.mean(axis=0))
    cosine = [unit(a) @ unit(b) for a in images - mean for b in texts - mean]
    torch.testing.assert_close((everything[0] @ everything[1].T).flatten(), torch.stack(cosine))


def test_spectral_cut_against_numpy():
    images, texts, seen, told = rows(5, 6), rows(7, 4, seed=1), rows(30, 6, seed=2) + 1, rows(30, 4, seed=3)
    told = told + seen[:, :4]
    x, y = seen.numpy() - seen.numpy().mean(axis=0), told.numpy() - told.numpy().mean(axis=0)
    operator = sum(np.outer(a, b) for a, b in zip(x, y, strict=True))
    left, right = np.linalg.eigh(operator @ operator.T)[1][:, ::-1], np.linalg.eigh(operator.T @ operator)[1][:, ::-1]
    found = spectral_cut(images, texts, seen, told, leading=1, trailing=1)
    assert [tuple(f.shape) for f in found] == [(5, 2), (7, 2)]
    for ours, features, basis in zip(found, (images, texts), (left, right), strict=True):
        theirs = np.stack([unit(row) for row in features.numpy() @ basis[:, 1:3]])
        np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-9)
    image_map, text_map = rows(5, 6, seed=4), rows(5, 4, seed=5)
    by_maps = spectral_cut(images, texts, image_map, text_map, leading=0, trailing=1, centred=False)
    basis = np.linalg.svd(image_map.numpy().T @ text_map.numpy())[0][:, :3]
    theirs = np.stack([unit(row) for row in images.numpy() @ basis])
    np.testing.assert_allclose(by_maps[0] @ by_maps[0].T, theirs @ theirs.T, atol=1e-9)


def test_a_cut_of_nothing_keeps_the_cosines_of_one_modality():
    images, texts, seen, told = (rows(n, 5, seed=n) for n in (4, 6, 20, 20))
    found = spectral_cut(images, texts, seen, told, leading=0, trailing=0)
    for ours, features in zip(found, (images, texts), strict=True):
        cosines = torch.stack([unit(f) for f in features])
        torch.testing.assert_close(ours @ ours.T, cosines @ cosines.T)


def test_neighbour_normalisation_by_sorting_each_column():
    scores, bank = rows(6, 5), rows(9, 5, seed=1)
    slow = scores.clone()
    for candidate in range(5):
        largest = sorted(bank[:, candidate].tolist(), reverse=True)[:3]
        slow[:, candidate] -= 0.75 * sum(largest) / 3
    torch.testing.assert_close(normalise_by_neighbours(scores, bank, weight=0.75, k=3), slow)
    assert torch.equal(normalise_by_neighbours(scores, bank, weight=0, k=9), scores)
    assert normalise_by_neighbours(scores.numpy(), bank.numpy(), weight=1, k=1).shape == (6, 5)


def test_weights_between_two_states():
    start = {"w": torch.tensor([0.0, 2.0]), "half": torch.tensor([1.0], dtype=torch.float16), "n": torch.tensor(3)}
    trained = {"w": torch.tensor([1.0, 0.0]), "half": torch.tensor([3.0], dtype=torch.float16), "n": torch.tensor(7)}
    found = interpolate_weights(start, trained, 0.25)
    assert found["w"].tolist() == [0.25, 1.5]
    assert found["half"].dtype == torch.float16
    assert found["half"].item() == 1.5
    assert found["n"].item() == 7
    for alpha, whole in ((0, start), (1.0, trained)):
        ends = interpolate_weights(start, trained, alpha)
        assert torch.equal(ends["w"], whole["w"])
        ends["w"] += 1  # a copy
        assert not torch.equal(ends["w"], whole["w"])


def test_the_first_of_the_best_is_chosen():
    assert choose_on_validation([{"a": 1}, {"a": 2}, {"a": 3}], lambda a: min(a, 2)) == ({"a": 2}, 2.0)
    with pytest.raises(ValueError, match="no candidates"):
        choose_on_validation([], lambda: 0)
    with pytest.raises(ValueError, match="NaN"):
        choose_on_validation([{"a": 1}], lambda a: float("nan"))


X, Y = rows(6, 4), rows(8, 4, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: centre(X, Y[:1]), "1 reference rows are too few for a mean"),
        (lambda: centre(X, Y[:, :3]), r"features \(6, 4\) and reference \(8, 3\)"),
        (lambda: centre(X[0], Y), r"features must be rows \[N, D\]"),
        (lambda: centre(X, Y / 0), "reference .* not finite"),
        (lambda: principal_components(X, X, Y[:1], Y[:2], width=3), "3 reference rows are too few for 3"),
        (lambda: principal_components(X, X, Y, Y, width=5), "width 5 is not in 1 to 4"),
        (lambda: spectral_cut(X, X, Y, Y[:5], leading=0, trailing=0), r"\(8, 4\) and reference_texts \(5, 4\)"),
        (lambda: spectral_cut(X, X, Y, Y, leading=2, trailing=2), "leading 2 and trailing 2 leave none of 4"),
        (lambda: spectral_cut(X, X, Y, Y, leading=-1, trailing=2), "leading -1"),
        (lambda: normalise_by_neighbours(X, Y, weight=1, k=9), "k = 9 neighbours of a bank of 8"),
        (lambda: normalise_by_neighbours(X, Y, weight=1, k=0), "k = 0"),
        (lambda: normalise_by_neighbours(X, Y[:, :2], weight=1, k=1), r"scores \(6, 4\) and bank_scores \(8, 2\)"),
        (lambda: normalise_by_neighbours(X, Y, weight=float("nan"), k=1), "weight nan"),
        (lambda: interpolate_weights({"w": X}, {"w": X}, 1.5), "alpha 1.5"),
        (lambda: interpolate_weights({"w": X}, {"w": X}, float("nan")), "alpha nan"),
        (lambda: interpolate_weights({"w": X}, {"v": X}, 0.5), r"only start has \['w'\], only trained has \['v'\]"),
        (lambda: interpolate_weights({"w": X}, {"w": Y}, 0.5), r"'w' is .*\(6, 4\) in start and .*\(8, 4\)"),
    ],
)
def test_bad_input_names_both_sides(call, message):
    with pytest.raises(ValueError, match=message):
        call()
