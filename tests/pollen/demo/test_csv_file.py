from pathlib import Path

import numpy as np
import pytest

from pollen.demo import csv_file
from pollen.demo.recording import DataError


def write(folder: Path, text: str) -> Path:
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_channels_are_all_columns_without_a_meaning(tmp_path: Path) -> None:
    path = write(tmp_path, "time,device,ax,ay,label\nx,a,1,2,walk\ny,b,3,4.5,run\n")
    recording = csv_file.read(path)
    assert recording.channels == ("ax", "ay")
    np.testing.assert_array_equal(recording.x, np.array([[1, 2], [3, 4.5]], np.float32))
    assert recording.subject.tolist() == ["a", "b"]
    assert recording.task == "classification"
    assert recording.classes == ("run", "walk")
    assert recording.y is not None
    assert recording.y.tolist() == [1, 0]


def test_whole_number_labels_are_numbered_in_their_order(tmp_path: Path) -> None:
    recording = csv_file.read(write(tmp_path, "subject,v,label\na,1,10\na,2,2\na,3,10\n"))
    assert recording.classes == ("2", "10")
    assert recording.y is not None
    assert recording.y.tolist() == [1, 0, 1]


def test_a_target_column_makes_it_a_regression(tmp_path: Path) -> None:
    recording = csv_file.read(write(tmp_path, "subject,v,target\na,1,0.5\na,2,1.5\n"))
    assert recording.task == "regression"
    assert recording.y is not None
    assert recording.y.dtype == np.float32


def test_without_labels_it_is_a_forecast(tmp_path: Path) -> None:
    assert csv_file.read(write(tmp_path, "device,v\na,1\na,2\n")).task == "forecast"


def test_rows_with_an_empty_cell_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "device,v,w,label\na,1,2,x\na,,2,x\na,3,4,\na,5,6,y\n"
    recording = csv_file.read(write(tmp_path, text))
    assert recording.skipped == 2
    assert recording.x[:, 0].tolist() == [1, 5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v,label\n1,x\n", "needs a column 'subject' or 'device'"),
        ("device,v\na,fast\n", "line 2, column 'v': 'fast' is no number"),
        ("device,v\na,1,2\n", "line 2 has 3 cells, the header has 2"),
        ("device,v,v\na,1,2\n", "column 'v' is there twice"),
        ("device,label\na,x\n", "no channel"),
        ("device,v,label,target\na,1,x,2\n", "keep one of them"),
        ("device,v\n", "no row below the header"),
        ("device,v\n,1\n", "line 2, column 'device' is empty"),
        ("device,v,target\na,1,high\n", "line 2, column 'target': 'high' is no number"),
        ("device,v,label\na,1,x\na,2,x\n", "every label is x"),
        ("", "the first line must name the columns"),
        ("device,v\na,\n", "no usable row"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_column(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        csv_file.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"device,v\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match=r"data\.csv: can't be read as CSV"):
        csv_file.read(path)
