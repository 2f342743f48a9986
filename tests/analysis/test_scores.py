"""Dice and intersection over union of a prediction."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import liver_dask as ld


def test_scores_are_those_of_numpy() -> None:
    """By slices and in all, lazily; a slice without labelled voxels has none."""
    rng = np.random.default_rng(0)
    predicted, mask = rng.integers(0, 256, (5, 20, 30)).astype(np.uint8), rng.random((5, 20, 30)) < 0.3
    mask[2] = False
    predicted[2] = 0
    coordinates = {"z": range(10, 15)}
    prediction = xr.DataArray(da.from_array(predicted, chunks=(2, 7, 9)), coordinates, ["z", "y", "x"])
    scores = ld.segmentation_scores(
        prediction, xr.DataArray(mask * np.uint8(255), coordinates, prediction.dims), threshold=127
    )
    assert all(variable.chunks is not None for variable in scores.data_vars.values())
    assert scores.z.values.tolist() == [10, 11, 12, 13, 14]
    is_right, is_predicted = mask, predicted > 127
    for z in (0, 1, 3, 4):
        both, either = (is_right[z] & is_predicted[z]).sum(), (is_right[z] | is_predicted[z]).sum()
        assert scores.dice.values[z] == 2 * both / (is_right[z].sum() + is_predicted[z].sum())
        assert scores.iou.values[z] == both / either
    assert np.isnan(scores.dice.values[2])
    both, either = (is_right & is_predicted).sum(), (is_right | is_predicted).sum()
    assert float(scores.dice_in_all) == 2 * both / (is_right.sum() + is_predicted.sum())
    assert float(scores.iou_in_all) == both / either


def test_wrong_arguments_are_one_sentence() -> None:
    """Other voxels, and floating-point numbers without a threshold."""
    one = xr.DataArray(np.zeros((2, 3, 4), "f4"), dims=["z", "y", "x"])
    with pytest.raises(ld.InvalidArgumentError, match="above which threshold"):
        ld.segmentation_scores(one, one > 0)
    with pytest.raises(ld.InvalidArgumentError, match="other voxels"):
        ld.segmentation_scores(one[:1], one > 0, threshold=0.5)
